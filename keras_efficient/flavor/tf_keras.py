"""tf_keras (Keras 2): Hugging Face TF, TF Model Garden and TF-MOT models."""

from contextlib import contextmanager

import tensorflow as tf
import tf_keras

from keras_efficient.flavor.base import EXAMPLES, SUM, Flavor, Forward, common_weight


class TfKeras(Flavor):
    name = "tf_keras"
    keras = tf_keras

    def value(self, variable):
        # Under a mixed policy layers hold a wrapper that casts on reading.
        return getattr(variable, "_variable", variable) if _casts(variable) else variable

    def path(self, variable):
        return variable.name.removesuffix(":0")

    def set_policy(self, layer, policy):
        layer._set_dtype_policy(policy)

    def call(self, model, inputs, training):
        if model._expects_training_arg:
            return model(inputs, training=training)
        return model(inputs)

    def forward(self, model, data):
        x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self.call(model, x, training=True)
        losses = model.compiled_loss
        if _has_own_compute_loss(model):
            loss, extra = model.compute_loss(x, y, y_pred, sample_weight), None
            weight = EXAMPLES
        else:
            with self.still_loss(model):
                extra = tf.add_n(model.losses) if model.losses else None
                loss = losses(y, y_pred, sample_weight)
                if loss is None:
                    loss, extra, weight = extra, None, EXAMPLES
                else:
                    weight = _weight(losses, y_pred)
        model._validate_target_and_loss(y, loss)
        if type(model).compute_metrics is not tf_keras.Model.compute_metrics:
            model.compute_metrics(x, y, y_pred, sample_weight)
        else:
            model.compiled_metrics.update_state(y, y_pred, sample_weight)
        return Forward(loss, extra, weight)

    def has_own_train_step(self, model):
        return type(model).train_step is not tf_keras.Model.train_step

    def own_weight(self, model, data):
        # Hugging Face's token losses leave out labels of -100 and divide by the number of others.
        mixins = {cls.__name__ for cls in type(model).__mro__}
        if not getattr(model, "_using_dummy_loss", False) or not mixins & _TOKEN_LOSSES:
            return EXAMPLES
        x, y, _ = tf_keras.utils.unpack_x_y_sample_weight(data)
        labels = x.get("labels") if y is None else y
        labels = labels.get("labels") if isinstance(labels, dict) else labels
        if labels is None:
            return EXAMPLES
        causal = "TFCausalLanguageModelingLoss" in mixins
        if causal and not mixins & {"TFMaskedLanguageModelingLoss"}:
            # Decoders compare with the next token; encoder-decoders get their labels shifted.
            labels = labels if model.config.is_encoder_decoder else labels[:, 1:]
        counted = labels >= 0 if "TFTokenClassificationLoss" in mixins else labels != -100
        return tf.reduce_sum(tf.cast(counted, tf.float32))

    def is_ready(self, model):
        parts = [*model._flatten_layers(), model.compiled_loss, model.compiled_metrics]
        return all(part is None or part.built for part in parts)

    def still_loss(self, model):
        return _still(model.compiled_loss)

    def track_loss(self, model, loss, examples):
        # A `compute_loss` of the model's own tracks what it likes, in every microbatch.
        if self.has_own_train_step(model) or not _has_own_compute_loss(model):
            model.compiled_loss._total_loss_mean.update_state(loss, sample_weight=examples)

    def gradients(self, model, tape, loss, variables):
        optimizer = model.optimizer
        # Model Garden's and Hugging Face's optimizers are of the older, "legacy" family.
        compute = getattr(optimizer, "compute_gradients", None) or optimizer._compute_gradients
        return [gradient for gradient, _ in compute(loss, variables, tape=tape)]


def _has_own_compute_loss(model):
    return type(model).compute_loss is not tf_keras.Model.compute_loss


def _casts(variable):
    return type(variable).__name__.startswith("AutoCast")


_TOKEN_LOSSES = {
    "TFCausalLanguageModelingLoss",
    "TFMaskedLanguageModelingLoss",
    "TFNextSentencePredictionLoss",
    "TFTokenClassificationLoss",
}


@contextmanager
def _still(losses):
    """Keep the "loss" metric of a LossesContainer still while the container is called."""
    mean = losses._total_loss_mean
    update = mean.update_state
    # Past Keras' own __setattr__, which would track the attribute.
    object.__setattr__(mean, "update_state", lambda *args, **kwargs: None)
    try:
        yield
    finally:
        object.__setattr__(mean, "update_state", update)


def _weight(losses, y_pred):
    """What tf_keras' `compute_weighted_loss` divided by."""
    reductions = tf_keras.losses.Reduction
    weights = []
    for loss, output in zip(losses._losses, tf.nest.flatten(y_pred), strict=True):
        if loss is None:
            continue
        mask = getattr(output, "_keras_mask", None)
        if loss.reduction in (reductions.SUM, reductions.NONE):
            weights.append(SUM)
        else:
            weights.append(EXAMPLES if mask is None else tf.reduce_sum(tf.cast(mask, tf.float32)))
    return common_weight(weights)
