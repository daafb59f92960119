"""Keras 3 on the TensorFlow backend, KerasHub included."""

import functools
from contextlib import ExitStack, contextmanager

import keras
import tensorflow as tf

# What variables are cast to inside a layer's call is not public.
from keras.src import backend as _backend

# There are no public hooks for `fit` on several workers (see `serve_workers`).
from keras.src.backend.tensorflow import trainer as _trainer

# `keras.losses` has no public hook for what a loss divides by, nor for its division by replicas.
from keras.src.losses import loss as _loss_module

# Nor for the seed generator of functions that are given none.
from keras.src.random import seed_generator as _seed_generator
from keras.src.saving import saving_api as _saving_api

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


class _Store(Store, keras.layers.Layer):
    def __init__(self, name):
        super().__init__(name=name, dtype="float32")
        vars(self)["named"] = {}
        self.built = True

    def _make(self, name, shape, value, trainable, dtype, regularizer):
        variable = self.add_weight(
            name=name,
            shape=shape,
            initializer=lambda shape, dtype: tf.cast(value, dtype),
            trainable=trainable,
            dtype=dtype,
            regularizer=regularizer,
        )
        variable._path = f"{self.prefix}/{name}"
        return variable

    def add_weight(self, **kwargs):
        self._tracker.unlock()
        try:
            return super().add_weight(**kwargs)
        finally:
            self._tracker.lock()


class Keras3(Flavor):
    store = _Store
    name = "keras"
    keras = keras
    applies_scaled = True
    sums_logs = False
    saving = _saving_api

    def __init__(self):
        super().__init__()
        if keras.backend.backend() != "tensorflow":
            raise ImportError(
                "keras_efficient works with Keras 3 on the TensorFlow backend. Received the "
                f"backend {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow before Keras "
                "is imported."
            )

    def value(self, variable):
        # (`variable.value` is cast inside of a layer's call.)
        return variable.value if variable._value is None else variable._value

    def path(self, variable):
        return variable.path

    def state(self, model):
        seeds = [v for layer in model._flatten_layers() for v in _seeds(layer)]
        return [*self.weights(model), *map(self.value, seeds)]

    def random_state(self, model):
        # What functions of `keras.random` draw from that are given no seed.
        with model.distribute_strategy.scope():
            return [_seed_generator.global_seed_generator().state.value]

    def set_policy(self, layer, policy):
        layer.dtype_policy = policy

    def attributes(self, layer):
        found = {}
        for name, value in vars(layer).items():
            if isinstance(value, keras.Variable):
                # Dense has `_kernel`, and a property `kernel` that its call reads.
                public = name.lstrip("_")
                found[
                    public if isinstance(getattr(type(layer), public, None), property) else name
                ] = value
        return found

    def adopt(self, layer, name, child):
        locked = layer._tracker.locked
        layer._tracker.unlock()
        setattr(layer, name, child)
        if locked:
            layer._tracker.lock()

    def release(self, layer, name):
        child = vars(layer)[name]
        object.__delattr__(layer, name)
        layer._tracker.untrack(child)

    def remove_variable(self, layer, variable):
        layer._untrack_variable(variable)

    def take_variable(self, layer, variable):
        name = next(name for name, value in vars(layer).items() if value is variable)
        trained = any(v is variable for v in layer._trainable_variables)
        group = "_trainable_variables" if trained else "_non_trainable_variables"
        index = next(i for i, v in enumerate(getattr(layer, group)) if v is variable)
        place = Place(name, group, index, _maker(variable))
        layer._untrack_variable(variable)
        layer._delete_tracking(name)
        vars(layer)[name] = None
        return place

    def put_variable(self, layer, place, variable):
        tracker = layer._tracker
        locked = tracker.locked
        tracker.unlock()
        # (Where it was, whether it trains now or not.)
        tracker.add_to_store(place.group.removeprefix("_"), variable)
        setattr(layer, place.name, variable)
        if locked:
            tracker.lock()
        group = getattr(layer, place.group)
        ordered = [v for v in group if v is not variable]
        group[:] = [*ordered[: place.index], variable, *ordered[place.index :]]

    def autocast(self, tensor):
        scope = _backend.get_autocast_scope()
        return tensor if scope is None else scope.maybe_cast(tensor)

    def set_trainable(self, layer, variable, trainable):
        variable.trainable = trainable
        frozen = vars(layer).setdefault(_FROZEN, [])
        frozen[:] = [v for v in frozen if v is not variable] + ([] if trainable else [variable])

    def viewed(self):
        return {"trainable": property(_trains, _let_train)}

    def is_trainable(self, layer, variable):
        return variable.trainable

    def saved_order(self, layer):
        return [*layer._trainable_variables, *layer._non_trainable_variables]

    def _renew_optimizer(self, optimizer, model):
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

    def call(self, model, inputs, training):
        if model._call_has_training_arg:
            return model(inputs, training=training)
        return model(inputs)

    def forward(self, model, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self.unscaled():
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
                    examples = tf.shape(tf.nest.flatten(x)[0])[0]
                    trackers = model._compile_loss.metrics
                    with _weighing(trackers, examples), _reductions() as weights:
                        loss = model._compile_loss(y, y_pred, sample_weight)
                    weight = common_weight(weights or [EXAMPLES])
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return Forward(loss, extra, weight, y_pred)

    def from_logits(self, model):
        return any(
            loss.get_config().get("from_logits")
            for _, loss, _, _ in model._compile_loss._flat_losses
        )

    def has_own_train_step(self, model):
        return type(model).train_step is not keras.Model.train_step

    def is_ready(self, model):
        parts = [*model._flatten_layers(), model._compile_metrics, model._compile_loss]
        return all(part is None or part.built for part in parts)

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

    def apply(self, model, gradients, variables):
        optimizer = self.optimizer(model)
        factor = optimizer.loss_scale_factor
        if factor is not None:
            gradients = [tf.math.scalar_mul(factor, gradient) for gradient in gradients]
        # Keras sums over replicas itself, after clipping: a sum of what is already summed, once too
        # often. (Another replica's thread may have come and gone between setting and removing.)
        vars(optimizer)["_all_reduce_sum_gradients"] = lambda pairs: pairs
        try:
            optimizer.apply(gradients, variables)
        finally:
            vars(optimizer).pop("_all_reduce_sum_gradients", None)

    def steps_per_execution(self, model):
        return model.steps_per_execution

    def unscaled(self):
        identity = {"scale_loss_for_distribution": _same, "unscale_loss_for_distribution": _same}
        return replaced(_loss_module, **identity)

    def adaptations(self, model):
        build = model._maybe_symbolic_build
        return {"_maybe_symbolic_build": functools.partial(_build_of_one_replica, model, build)}

    def serve_workers(self, strategy_class):
        """Let models made under strategies of this class train on several workers too (trap 17).

        That takes the build before the first step, and the reduction of what replicas return.
        """
        if strategy_class in self._served:
            return
        super().serve_workers(strategy_class)
        plain_build, plain_reduce = _Trainer._maybe_symbolic_build, _trainer.reduce_per_replica

        def build(model, iterator=None, data_batch=None):
            plain = plain_build.__get__(model)
            if not isinstance(model._distribute_strategy, strategy_class):
                return plain(iterator=iterator, data_batch=data_batch)
            return _build_of_one_replica(model, plain, iterator, data_batch)

        def reduce(values, strategy, reduction):
            if not isinstance(strategy, strategy_class) or reduction not in _MEANS:
                return plain_reduce(values, strategy, reduction)
            return _mean_over_workers(values, strategy)

        _Trainer._maybe_symbolic_build, _trainer.reduce_per_replica = build, reduce


#: How `fit` and `evaluate` reduce what replicas log.
_MEANS = ("auto", "mean")
_Trainer = _trainer.TensorFlowTrainer


def _build_of_one_replica(model, plain, iterator=None, data_batch=None):
    """Keras' `_maybe_symbolic_build`, from the specification of a replica's share of a batch.

    Keras takes the mean of the first batch over replicas to learn its shape, which fails when they
    differ, as on a first batch of one example, and over workers (traps 16, 17). And the iterator it
    starts for that moves a reshuffled dataset on to its second order.
    """
    if model._distribute_strategy is not None and iterator is not None:
        specification = iterator._distributed_dataset.element_spec
        data_batch = tf.nest.map_structure(_of_one_replica, specification)
    return plain(data_batch=data_batch)


def _of_one_replica(spec):
    spec = getattr(spec, "_value_specs", (spec,))[0]
    # (Keras' None.)
    return None if isinstance(spec, tf.OptionalSpec) else spec


def _mean_over_workers(values, strategy):
    """The mean over all replicas of a nest of scalars, summed over the wire at once."""
    leaves = [strategy.experimental_local_results(v) for v in tf.nest.flatten(values)]
    means = tf.stack([tf.add_n([tf.cast(v, tf.float32) for v in of]) / len(of) for of in leaves])
    means = tf.unstack(strategy.reduce("SUM", means, axis=None) / len(strategy.cluster))
    return tf.nest.pack_sequence_as(values, means)


#: Attribute of a viewed layer: its variables that do not train.
_FROZEN = "_keras_efficient_frozen"


def _trains(layer):
    return super(type(layer), layer).trainable


def _let_train(layer, value):
    """Set `layer.trainable`, which in Keras sets all of its variables'."""
    bases = type(layer).__mro__[1:]
    next(c for c in bases if "trainable" in vars(c)).trainable.fset(layer, value)
    for variable in vars(layer).get(_FROZEN, ()):
        variable.trainable = False


def _same(value):
    return value


def _maker(variable):
    """A function of a value that makes a variable like this one, without keeping it."""
    path, regularizer, constraint = variable.path, variable.regularizer, variable.constraint
    settings = {"dtype": variable.dtype, "trainable": variable.trainable, "name": variable.name}
    settings["autocast"] = variable._autocast

    def make(value):
        made = keras.Variable(value, **settings)
        made._path, made.regularizer, made.constraint = path, regularizer, constraint
        return made

    return make


def _seeds(layer):
    """The states of a layer's random seed generators."""
    return [generator.state for generator in layer._seed_generators]


@contextmanager
def _weighing(trackers, examples):
    """Let the per-output loss trackers weigh a microbatch by its examples.

    Keras weighs by the static batch size, which is not known in a loop.
    """
    with ExitStack() as stack:
        for tracker in trackers:
            update = functools.partial(_update, tracker.update_state, examples)
            stack.enter_context(replaced(tracker, update_state=update))
        yield


def _update(update, examples, value, sample_weight=None):
    return update(value, sample_weight=examples)


@contextmanager
def _reductions():
    """A context that yields a list of what each loss called inside divides by."""
    weights, reduce = [], _loss_module.reduce_weighted_values

    def spy(values, sample_weight=None, mask=None, reduction="sum_over_batch_size", dtype=None):
        weights.append(_weight(sample_weight, mask, _loss_module.standardize_reduction(reduction)))
        return reduce(values, sample_weight, mask, reduction, dtype)

    with replaced(_loss_module, reduce_weighted_values=spy):
        yield weights


def _weight(sample_weight, mask, reduction):
    """What Keras' `reduce_weighted_values` divides by."""
    if reduction in ("sum", "none", None):
        return SUM
    if reduction == "mean_with_sample_weight":
        weight = _loss_module.apply_mask(sample_weight, mask, "float64", reduction)
        return EXAMPLES if weight is None else tf.reduce_sum(weight)
    return EXAMPLES if mask is None else tf.reduce_sum(tf.cast(mask, tf.float32))
