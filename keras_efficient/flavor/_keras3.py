"""Keras 3 on the TensorFlow backend, including KerasHub."""

import functools
from typing import Any

import keras
import tensorflow as tf

# The dtype that variables are cast to inside a layer's call is not public.
from keras.src import backend as _backend

# Nor is the call that is running.
from keras.src.backend.common import global_state as _global_state

# Nor is the seed generator of functions that are given none.
from keras.src.random import seed_generator as _seed_generator
from keras.src.saving import saving_api as _saving_api

from keras_efficient.flavor import _keras3_losses as losses, _keras3_multi_worker as multi_worker
from keras_efficient.flavor._flavor import Flavor
from keras_efficient.flavor._keras3_replay import Keras3Replay
from keras_efficient.flavor._loss_scale import LossScale
from keras_efficient.flavor._variable_store import VariableStore

#: Attribute of a parametrized layer: its frozen variables.
_FROZEN = "_keras_efficient_frozen"


class _Store(VariableStore, keras.layers.Layer):
    def _add(self, name, **settings):
        variable: Any = self.add_weight(name=name, **settings)
        variable._path = f"{self.prefix}/{name}"
        return variable

    def add_weight(self, **kwargs):
        self._tracker.unlock()
        try:
            return super().add_weight(**kwargs)
        finally:
            self._tracker.lock()


class Keras3(Flavor):
    """The flavor of Keras 3."""

    name = "keras"
    keras = keras
    store = _Store
    uses_autograph = False
    has_quantize = True
    applies_scaled_gradients = True
    sums_logs = False
    _saving = _saving_api
    _training_flag = "_call_has_training_arg"
    _variable_lists = ("_trainable_variables", "_non_trainable_variables")

    def __init__(self):
        super().__init__()
        if keras.backend.backend() != "tensorflow":
            raise ImportError(
                "keras_efficient works with Keras 3 on the TensorFlow backend. Received the "
                f"backend {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow before Keras "
                "is imported."
            )

    # --- variables -----------------------------------------------------------------------------

    def value(self, variable):
        if isinstance(variable, tf.Variable):
            return variable
        # `variable.value` is cast inside a layer's call.
        return variable.value if variable._value is None else variable._value

    def path(self, variable):
        return variable.path

    def state(self, model):
        generators = [g for layer in model._flatten_layers() for g in layer._seed_generators]
        return [*self.weights(model), *(self.value(g.state) for g in generators)]

    def random_state(self, model):
        # Functions of `keras.random` that are given no seed draw from this generator.
        with model.distribute_strategy.scope():
            return [_seed_generator.global_seed_generator().state.value]

    # --- layers --------------------------------------------------------------------------------

    def set_policy(self, layer, policy):
        layer.dtype_policy = policy

    def add_weight(self, layer, name, shape, dtype, initializer, *, trainable):
        if trainable:
            return layer.add_weight(
                shape=shape, dtype=dtype, initializer=initializer, name=name, autocast=False
            )
        # `Layer.add_weight` has no `synchronization`; `keras.Variable` has.
        return keras.Variable(
            keras.initializers.get(initializer),
            shape=shape,
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation="mean",
            synchronization="on_read",
            name=name,
        )

    def variable_attributes(self, layer):
        found = {}
        for name, value in vars(layer).items():
            if isinstance(value, keras.Variable):
                # Dense has `_kernel`, and a property `kernel` that its call reads.
                public = name.lstrip("_")
                found[
                    public if isinstance(getattr(type(layer), public, None), property) else name
                ] = value
        return found

    def add_sublayer(self, layer, name, child):
        locked = layer._tracker.locked
        layer._tracker.unlock()
        setattr(layer, name, child)
        if locked:
            layer._tracker.lock()

    def remove_sublayer(self, layer, name):
        child = vars(layer)[name]
        object.__delattr__(layer, name)
        layer._tracker.untrack(child)

    def remove_variable(self, layer, variable):
        layer._untrack_variable(variable)

    def _forget_attribute(self, layer, name, variable):
        layer._delete_tracking(name)

    def _maker(self, variable):
        path, regularizer, constraint = variable.path, variable.regularizer, variable.constraint
        settings = {"dtype": variable.dtype, "trainable": variable.trainable, "name": variable.name}
        settings["autocast"] = variable._autocast

        def make(value):
            made: Any = keras.Variable(value, **settings)
            made._path, made.regularizer, made.constraint = path, regularizer, constraint
            return made

        return make

    def attach_variable(self, layer, slot, variable):
        tracker = layer._tracker
        locked = tracker.locked
        tracker.unlock()
        # Back into the list it was in, whether it trains now or not.
        tracker.add_to_store(slot.group.removeprefix("_"), variable)
        setattr(layer, slot.name, variable)
        if locked:
            tracker.lock()
        group = getattr(layer, slot.group)
        ordered = [v for v in group if v is not variable]
        group[:] = [*ordered[: slot.index], variable, *ordered[slot.index :]]

    def autocast(self, tensor):
        scope: Any = _backend.get_autocast_scope()
        return tensor if scope is None else scope.maybe_cast(tensor)

    def in_call(self):
        return _global_state.get_global_attribute("current_call_ctx") is not None

    def with_value(self, variable, value):
        # Keras' own code asks the members of `layer.weights` for `trainable`, `regularizer`, ...
        made = object.__new__(type(variable))
        vars(made).update(vars(variable), _value=value)
        return made

    def set_trainable(self, layer, variable, trainable):
        variable.trainable = trainable
        frozen = vars(layer).setdefault(_FROZEN, [])
        frozen[:] = [v for v in frozen if v is not variable] + ([] if trainable else [variable])

    def is_trainable(self, layer, variable):
        return variable.trainable

    def class_attributes(self):
        return {"trainable": property(_get_trainable, _set_trainable)}

    def converted(self, layer, call):
        return call

    def replay(self, layer, kwargs):
        return Keras3Replay.of(layer, kwargs)

    def attention_mask(self, layer, mask):
        if mask.dtype == tf.bool:
            return mask
        # With a dropout rate, MultiHeadAttention takes another code path.
        return tf.cast(mask, tf.float32) > 0.5 if layer._dropout > 0 else tf.cast(mask, tf.bool)

    def call_specs(self, model):
        if getattr(model, "inputs", None):
            inputs = model._inputs_struct if hasattr(model, "_inputs_struct") else model.inputs
            return [([tf.nest.map_structure(_spec, inputs)], {})]
        # A subclassed model records the shapes it was built for, but no dtypes.
        shapes = getattr(model, "_build_shapes_dict", None) or {}
        if not shapes or None in shapes.values():
            return []
        found = []
        for dtype in ("float32", "int32"):
            specs = [_specs(shape, dtype) for shape in shapes.values()]
            names = [name.removesuffix("_shape") for name in shapes]
            found.append(
                (specs, {}) if len(specs) == 1 else ([], dict(zip(names, specs, strict=True)))
            )
        return found

    def _rebuild_graph(self, model, made, called):
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            model._inputs_struct,
        )
        outputs = model._run_through_graph(inputs, operation_fn=made, call_fn=called)
        return type(model)(inputs, outputs, name=model.name)

    def dropout_seed(self, layer):
        return layer.seed_generator.next()

    # --- training ------------------------------------------------------------------------------

    def _reset_optimizer(self, optimizer, model):
        if not optimizer.built or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return
        built = {id(v) for v in optimizer._trainable_variables}
        if {id(v) for v in model.trainable_variables} <= built <= {id(v) for v in model.weights}:
            return
        kept = [optimizer.iterations, getattr(optimizer, "_learning_rate", None)]
        for variable in list(optimizer._variables):
            if all(variable is not k for k in kept):
                optimizer._untrack_variable(variable)
        optimizer._trainable_variables, optimizer._trainable_variables_indices = [], {}
        optimizer.built = False

    def _custom_loss(self, model, x, y, y_pred, sample_weight):
        return model._compute_loss(x, y, y_pred, sample_weight, training=True)

    def _added_losses(self, model):
        return _total(
            model, [loss for layer in model._flatten_layers() for loss in layer._get_own_losses()]
        )

    def _regularization(self, model):
        return _total(model, model._get_regularization_losses())

    def _compiled_loss(self, model, x, y, y_pred, sample_weight):
        if model._compile_loss is None:
            return None, []
        examples = tf.shape(tf.nest.flatten(x)[0])[0]
        trackers = model._compile_loss.metrics
        weighted = losses.weighted_by_examples(trackers, examples)
        with weighted, losses.recorded() as recorded:
            return model._compile_loss(y, y_pred, sample_weight), recorded

    def _update_metrics(self, model, x, y, y_pred, sample_weight, loss):
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _losses(self, model):
        compiled = model._compile_loss
        if compiled is None or compiled._flat_losses is None:
            # Of a model that has not been trained yet.
            return [] if compiled is None else tf.nest.flatten(compiled._user_loss)
        return [loss for _, loss, _, _ in compiled._flat_losses]

    def _compiled_parts(self, model):
        return [model._compile_metrics, model._compile_loss]

    def recorded_losses(self):
        return losses.recorded()

    def without_replica_scaling(self):
        return losses.without_replica_scaling()

    def loss_tracker(self, model):
        return model._loss_tracker

    def track_loss(self, model, loss, examples):
        self.loss_tracker(model).update_state(loss, sample_weight=examples)

    def all_metrics(self, model):
        inner = model._compile_loss.metrics if model._compile_loss is not None else []
        return [*model.metrics, *inner]

    def loss_scale(self, model):
        optimizer = model.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return LossScale(
                optimizer.inner_optimizer,
                optimizer.dynamic_scale.value,
                optimizer.step_counter.value,
                optimizer.dynamic_growth_steps,
            )
        factor = optimizer.loss_scale_factor
        # `apply` divides by a fixed factor itself.
        return None if factor is None else LossScale(optimizer, factor)

    def apply(self, model, gradients, variables, replacements):
        optimizer = self.optimizer(model)
        factor = optimizer.loss_scale_factor
        if factor is not None:
            gradients = [tf.math.scalar_mul(factor, gradient) for gradient in gradients]
        # Keras sums gradients over replicas after clipping; these are already summed. Another
        # replica's thread may set and remove the attribute in between, hence `pop` with a default.
        vars(optimizer)["_all_reduce_sum_gradients"] = lambda pairs: pairs
        try:
            # The optimizer takes the replacements out before it does anything else.
            optimizer.apply(
                [*gradients, *(value for _, value in replacements)],
                [*variables, *(variable for variable, _ in replacements)],
            )
        finally:
            vars(optimizer).pop("_all_reduce_sum_gradients", None)

    def steps_per_execution(self, model):
        return model.steps_per_execution

    def fit_overrides(self, model):
        build = functools.partial(
            multi_worker.build_from_replica_spec, model, model._maybe_symbolic_build
        )
        return {"_maybe_symbolic_build": build}

    def enable_multi_worker(self, strategy_class):
        if strategy_class in self._multi_worker_classes:
            return
        super().enable_multi_worker(strategy_class)
        multi_worker.enable_multi_worker(strategy_class)


def _spec(tensor):
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def _specs(shape, dtype):
    """Return `tf.TensorSpec`s for a nest of shapes."""
    if isinstance(shape, dict):
        return {name: _specs(value, dtype) for name, value in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return tf.TensorSpec(shape, dtype)
    return [_specs(value, dtype) for value in shape]


def _total(model, losses):
    """Return the sum of parts of `model.losses`, or None."""
    return tf.add_n([model._aggregate_additional_loss(loss) for loss in losses]) if losses else None


def _get_trainable(layer):
    base: Any = super(type(layer), layer)
    return base.trainable


def _set_trainable(layer, value):
    """Set `layer.trainable`, for which Keras sets that of all its variables."""
    bases = type(layer).__mro__[1:]
    next(c for c in bases if "trainable" in vars(c)).trainable.fset(layer, value)
    for variable in vars(layer).get(_FROZEN, ()):
        variable.trainable = False
