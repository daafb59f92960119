"""tf_keras (Keras 2): Hugging Face TF, TF Model Garden and TF-MOT models."""

from contextlib import ExitStack, contextmanager

import tensorflow as tf
import tf_keras

# What Dropout draws from is not public.
from tf_keras.src.backend import RandomGenerator

# Nor what a layer's variables are cast to.
from tf_keras.src.mixed_precision import autocast_variable as _autocast

# Nor one for where a model's `save` goes (see `serve_workers`).
from tf_keras.src.saving import saving_api as _saving_api

# `tf_keras.losses` has no public hook for what a loss divides by, nor for its division by replicas.
from tf_keras.src.utils import losses_utils as _losses_utils

from keras_efficient.flavor._base import (
    EXAMPLES,
    SUM,
    Flavor,
    Forward,
    LossScale,
    Place,
    Store,
    common_weight,
    replaced,
)


class _Store(Store, tf_keras.layers.Layer):
    def __init__(self, name):
        super().__init__(name=name, dtype="float32")
        object.__setattr__(self, "named", {})
        self.built = True

    def _make(self, name, shape, value, trainable, dtype, regularizer):
        # (HDF5 files want names that differ.)
        return self.add_weight(
            name=f"{self.prefix}/{name}",
            shape=shape,
            initializer=lambda shape, dtype: tf.cast(value, dtype),
            trainable=trainable,
            dtype=dtype,
            regularizer=regularizer,
            experimental_autocast=False,
        )


class TfKeras(Flavor):
    store = _Store
    name = "tf_keras"
    keras = tf_keras
    applies_scaled = False
    sums_logs = True
    saving = _saving_api

    def value(self, variable):
        # Under a mixed policy layers hold a wrapper that casts on reading.
        return getattr(variable, "_variable", variable) if _casts(variable) else variable

    def path(self, variable):
        return variable.name.removesuffix(":0")

    def random_state(self, model):
        # Dropout draws from a state inside TensorFlow's kernels, which nobody can read. A
        # `tf.random.Generator` has a variable; tf_keras keeps it out of weights and checkpoints.
        with model.distribute_strategy.scope():
            generators = _generators(model)
            for generator in generators:
                if generator._rng_type == generator.RNG_LEGACY_STATEFUL:
                    generator._rng_type, generator._built = generator.RNG_STATEFUL, False
                    vars(generator)["_keras_efficient_legacy"] = True
                generator._maybe_init()
        return [g._generator.state for g in generators if g._generator is not None]

    def forget_random_state(self, model):
        for generator in _generators(model):
            if vars(generator).pop("_keras_efficient_legacy", False):
                generator._rng_type = generator.RNG_LEGACY_STATEFUL
                generator._generator = None

    def set_policy(self, layer, policy):
        layer._set_dtype_policy(policy)

    def attributes(self, layer):
        own = {id(v) for v in self.saved_order(layer)}
        return {name: value for name, value in vars(layer).items() if id(value) in own}

    def adopt(self, layer, name, child):
        setattr(layer, name, child)

    def release(self, layer, name):
        delattr(layer, name)
        # (Which leaves it in the graph of objects that a SavedModel is made of.)
        layer._delete_tracking(name)

    def remove_variable(self, layer, variable):
        for group in (layer._trainable_weights, layer._non_trainable_weights):
            group[:] = [v for v in group if v is not variable]
        # Nor may its regularizer be in the loss.
        losses = layer._callable_losses
        losses[:] = [f for f in losses if all(a is not variable for a in getattr(f, "args", ()))]

    def take_variable(self, layer, variable):
        name = next(name for name, value in vars(layer).items() if value is variable)
        groups = (layer._trainable_weights, layer._non_trainable_weights)
        group = next(g for g in groups if any(v is variable for v in g))
        index = next(i for i, v in enumerate(group) if v is variable)
        self.remove_variable(layer, variable)
        layer._delete_tracking(name)
        layer._obj_reference_counts.pop(variable, None)
        vars(layer)[name] = None
        trained = group is groups[0]
        return Place(
            name,
            "_trainable_weights" if trained else "_non_trainable_weights",
            index,
            _maker(variable),
        )

    def put_variable(self, layer, place, variable):
        # (What `setattr` does, but with the attribute where it was among the others.)
        vars(layer)[place.name] = variable
        layer._track_trackable(variable, place.name, overwrite=True)
        counts = layer._obj_reference_counts
        counts[variable] = counts.get(variable, 0) + 1
        getattr(layer, place.group).insert(place.index, variable)

    def autocast(self, tensor):
        dtype = getattr(_autocast._autocast_dtype, "dtype", None)
        return tensor if dtype is None or not tensor.dtype.is_floating else tf.cast(tensor, dtype)

    def set_trainable(self, layer, variable, trainable):
        # A `tf.Variable` cannot be changed, and in another list of the layer's it would be saved
        # in another order: see `viewed`.
        frozen = vars(layer)[_FROZEN] = vars(layer).get(_FROZEN, set()) - {id(variable)}
        if not trainable:
            frozen.add(id(variable))

    def is_trainable(self, layer, variable):
        own = any(variable is v for v in layer._trainable_weights)
        return own and id(variable) not in vars(layer).get(_FROZEN, ())

    def saved_order(self, layer):
        return [*layer._trainable_weights, *layer._non_trainable_weights]

    def viewed(self):
        return {"trainable_weights": _unfrozen, "non_trainable_weights": _frozen, "weights": _all}

    def _renew_optimizer(self, optimizer, model):
        built = getattr(optimizer, "_built", False)
        if not built or not isinstance(optimizer, tf_keras.optimizers.Optimizer):
            return
        train, all_of_it = (
            {optimizer._var_key(v) for v in variables}
            for variables in (model.trainable_variables, model.weights)
        )
        if train <= set(optimizer._index_dict) <= all_of_it:
            return
        kept = [optimizer.iterations, getattr(optimizer, "_learning_rate", None)]
        optimizer._variables[:] = [v for v in optimizer._variables if any(v is k for k in kept)]
        optimizer._index_dict = {}
        optimizer._built = False

    def call(self, model, inputs, training):
        if model._expects_training_arg:
            return model(inputs, training=training)
        return model(inputs)

    def forward(self, model, data):
        x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self.call(model, x, training=True)
        losses = model.compiled_loss
        with self.unscaled():
            if _has_own_compute_loss(model):
                loss, extra = model.compute_loss(x, y, y_pred, sample_weight), None
                weight = EXAMPLES
            else:
                with self.still_loss(model), _reductions() as weights:
                    extra = tf.add_n(model.losses) if model.losses else None
                    loss = losses(y, y_pred, sample_weight)
                if loss is None:
                    loss, extra, weight = extra, None, EXAMPLES
                else:
                    weight = common_weight(weights or [EXAMPLES])
        model._validate_target_and_loss(y, loss)
        if type(model).compute_metrics is not tf_keras.Model.compute_metrics:
            model.compute_metrics(x, y, y_pred, sample_weight)
        else:
            model.compiled_metrics.update_state(y, y_pred, sample_weight)
        return Forward(loss, extra, weight, y_pred)

    def from_logits(self, model):
        losses = tf.nest.flatten(model.compiled_loss._losses)
        return any(loss.get_config().get("from_logits") for loss in losses if loss is not None)

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

    def loss_tracker(self, model):
        return model.compiled_loss._total_loss_mean

    def track_loss(self, model, loss, examples):
        # A `compute_loss` of the model's own tracks what it likes, in every microbatch.
        if self.has_own_train_step(model) or not _has_own_compute_loss(model):
            self.loss_tracker(model).update_state(loss, sample_weight=examples)

    def loss_scale(self, model):
        optimizer = model.optimizer
        if not isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer):
            return None
        if not optimizer.dynamic:
            return LossScale(optimizer.inner_optimizer, optimizer.initial_scale)
        state = optimizer._loss_scale
        return LossScale(
            optimizer.inner_optimizer,
            state.current_loss_scale,
            state.counter,
            optimizer.dynamic_growth_steps,
        )

    def apply(self, model, gradients, variables):
        optimizer, pairs = self.optimizer(model), list(zip(gradients, variables, strict=True))
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            optimizer.apply_gradients(pairs)
        elif isinstance(optimizer, tf_keras.optimizers.Optimizer):
            optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
        else:
            # Model Garden's AdamW leaves clipping to its caller when it does not sum itself.
            norm = getattr(optimizer, "gradient_clip_norm", 0)
            if norm > 0:
                gradients, _ = tf.clip_by_global_norm(gradients, norm)
                pairs = list(zip(gradients, variables, strict=True))
            optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

    @contextmanager
    def recording(self, model, weight, penalty=None):
        # `result` of a metric synchronises replicas, which a loop cannot do.
        metrics = model.metrics if tf.distribute.get_strategy().num_replicas_in_sync > 1 else []
        with super().recording(model, weight, penalty) as recording, ExitStack() as stack:
            for metric in metrics:
                stack.enter_context(replaced(metric, result=lambda: tf.constant(0.0)))
            yield recording

    def steps_per_execution(self, model):
        steps = model._steps_per_execution
        return 1 if steps is None else int(steps.numpy())

    def count_step(self, model):
        model._train_counter.assign_add(1)

    def unscaled(self):
        return replaced(_losses_utils, scale_loss_for_distribution=lambda value: value)


#: Attribute of a viewed layer: the ids of its variables that do not train.
_FROZEN = "_keras_efficient_frozen"


def _of_super(layer, name):
    return getattr(super(type(layer), layer), name)


@property
def _unfrozen(layer):
    frozen = vars(layer).get(_FROZEN, ())
    return [v for v in _of_super(layer, "trainable_weights") if id(v) not in frozen]


@property
def _frozen(layer):
    frozen = vars(layer).get(_FROZEN, ())
    stuck = [v for v in _of_super(layer, "trainable_weights") if id(v) in frozen]
    return [*stuck, *_of_super(layer, "non_trainable_weights")]


@property
def _all(layer):
    # In the order they had before any was frozen: arrays of `get_weights` stay where they were.
    ordered = [*_of_super(layer, "trainable_weights"), *_of_super(layer, "non_trainable_weights")]
    return list({id(v): v for v in ordered}.values())


def _has_own_compute_loss(model):
    return type(model).compute_loss is not tf_keras.Model.compute_loss


def _generators(model):
    """What the layers of a model (Dropout and its like) draw random numbers from."""
    found = [getattr(layer, "_random_generator", None) for layer in model._flatten_layers()]
    return [g for g in found if isinstance(g, RandomGenerator)]


def _maker(variable):
    """A function of a value that makes a variable like this one, without keeping it."""
    settings = {"dtype": variable.dtype, "trainable": variable.trainable}
    settings["name"], casts = variable.name.removesuffix(":0"), _casts(variable)
    if casts:
        settings["dtype"] = variable._variable.dtype

    def make(value):
        made = tf.Variable(value, **settings)
        return _autocast.create_autocast_variable(made) if casts else made

    return make


def _casts(variable):
    return type(variable).__name__.startswith("AutoCast")


_TOKEN_LOSSES = {
    "TFCausalLanguageModelingLoss",
    "TFMaskedLanguageModelingLoss",
    "TFNextSentencePredictionLoss",
    "TFTokenClassificationLoss",
}


@contextmanager
def _reductions():
    """A context that yields a list of what each loss called inside divides by."""
    weights, apply_mask = [], _losses_utils.apply_valid_mask
    reductions = tf_keras.losses.Reduction

    def spy(losses, sample_weight, mask, reduction):
        if reduction in (reductions.SUM, reductions.NONE):
            weights.append(SUM)
        else:
            weights.append(EXAMPLES if mask is None else tf.reduce_sum(tf.cast(mask, tf.float32)))
        return apply_mask(losses, sample_weight, mask, reduction)

    with replaced(_losses_utils, apply_valid_mask=spy):
        yield weights
