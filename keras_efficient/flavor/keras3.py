"""Keras 3 on the TensorFlow backend, KerasHub included."""

import functools
from contextlib import contextmanager

import keras
import tensorflow as tf

from keras_efficient.flavor.base import EXAMPLES, SUM, Flavor, Forward, common_weight


class Keras3(Flavor):
    name = "keras"
    keras = keras

    def __init__(self):
        if keras.backend.backend() != "tensorflow":
            raise ImportError(
                "keras_efficient works with Keras 3 on the TensorFlow backend. Received the "
                f"backend {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow before Keras "
                "is imported."
            )

    def value(self, variable):
        return variable.value

    def path(self, variable):
        return variable.path

    def state(self, model):
        seeds = [v for layer in model._flatten_layers() for v in _seeds(layer)]
        return [*self.weights(model), *map(self.value, seeds)]

    def set_policy(self, layer, policy):
        layer.dtype_policy = policy

    def call(self, model, inputs, training):
        if model._call_has_training_arg:
            return model(inputs, training=training)
        return model(inputs)

    def forward(self, model, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self.call(model, x, training=True)
        extra = None
        if type(model).compute_loss is not keras.Model.compute_loss:
            loss = model._compute_loss(x, y, y_pred, sample_weight, training=True)
            weight = EXAMPLES
        else:
            added = [model._aggregate_additional_loss(loss) for loss in model.losses]
            extra = tf.add_n(added) if added else None
            if model._compile_loss is None:
                loss, extra, weight = extra, None, EXAMPLES
            else:
                with _weighing(model._compile_loss.metrics, tf.shape(tf.nest.flatten(x)[0])[0]):
                    loss = model._compile_loss(y, y_pred, sample_weight)
                weight = _weight(model._compile_loss, y_pred, sample_weight)
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return Forward(loss, extra, weight)

    def has_own_train_step(self, model):
        return type(model).train_step is not keras.Model.train_step

    def is_ready(self, model):
        parts = [*model._flatten_layers(), model._compile_metrics, model._compile_loss]
        return all(part is None or part.built for part in parts)

    def track_loss(self, model, loss, examples):
        model._loss_tracker.update_state(loss, sample_weight=examples)

    def gradients(self, model, tape, loss, variables):
        with tape:
            loss = model.optimizer.scale_loss(loss)
        return tape.gradient(loss, [self.value(variable) for variable in variables])


def _seeds(layer):
    """The states of a layer's random seed generators."""
    return [generator.state for generator in layer._seed_generators]


@contextmanager
def _weighing(trackers, examples):
    """Let the per-output loss trackers weigh a microbatch by its examples.

    Keras weighs by the static batch size, which is not known in a loop.
    """
    updates = [tracker.update_state for tracker in trackers]
    for tracker, update in zip(trackers, updates, strict=True):
        # Past Keras' own __setattr__, which would track the attribute.
        weighing = functools.partial(_update, update, examples)
        object.__setattr__(tracker, "update_state", weighing)
    try:
        yield
    finally:
        for tracker in trackers:
            object.__delattr__(tracker, "update_state")


def _update(update, examples, value, sample_weight=None):
    return update(value, sample_weight=examples)


def _weight(compile_loss, y_pred, sample_weight):
    """What Keras' `reduce_weighted_values` divided by."""
    weights = []
    for path, loss, _, _ in compile_loss._flat_losses:
        output, weighting = y_pred, sample_weight
        for key in path:
            output = output[key]
            if isinstance(sample_weight, list | tuple | dict):
                weighting = weighting[key]
        mask = getattr(output, "_keras_mask", None)
        if loss.reduction in ("sum", "none", None):
            weights.append(SUM)
        elif loss.reduction == "mean_with_sample_weight" and weighting is not None:
            weighting = tf.cast(weighting, tf.float32)
            if mask is not None:
                mask = tf.cast(mask, tf.float32)
                missing = [1] * (len(mask.shape) - len(weighting.shape))
                weighting = tf.reshape(weighting, [*tf.unstack(tf.shape(weighting)), *missing])
                weighting *= mask
            weights.append(tf.reduce_sum(weighting))
        else:
            weights.append(EXAMPLES if mask is None else tf.reduce_sum(tf.cast(mask, tf.float32)))
    return common_weight(weights)
