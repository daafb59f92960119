"""tf_keras (Keras 2): models of Hugging Face, TF Model Garden and TF-MOT."""

from contextlib import ExitStack, contextmanager
from typing import Any

import tensorflow as tf
import tf_keras

# The generator that Dropout draws from is not public.
from tf_keras.src.backend import RandomGenerator

# Nor is whether a layer is being called, nor the mark of losses that a loaded layer has lost.
from tf_keras.src.engine import base_layer_utils as _base_layer_utils

# Nor is the dtype that a layer's variables are cast to.
from tf_keras.src.mixed_precision import autocast_variable as _autocast

# Nor is the module that a model's `save` calls; see `Flavor.enable_multi_worker`.
from tf_keras.src.saving import saving_api as _saving_api

from keras_efficient.flavor import _hugging_face as hugging_face, _tf_keras_losses as losses
from keras_efficient.flavor._flavor import Flavor
from keras_efficient.flavor._hugging_face_loss import own_loss
from keras_efficient.flavor._loss_scale import LossScale
from keras_efficient.flavor._patched import patched
from keras_efficient.flavor._tf_keras_replay import TfKerasReplay
from keras_efficient.flavor._variable_store import VariableStore

#: Attribute of a parametrized layer: the ids of its frozen variables.
_FROZEN = "_keras_efficient_frozen"


class _Store(VariableStore, tf_keras.layers.Layer):
    def _add(self, name, **settings):
        # HDF5 files need names that differ between layers.
        name = f"{self.prefix}/{name}"
        return self.add_weight(name=name, experimental_autocast=False, **settings)


class TfKeras(Flavor):
    """The flavor of tf_keras."""

    name = "tf_keras"
    keras = tf_keras
    store = _Store
    uses_autograph = True
    has_quantize = False
    applies_scaled_gradients = False
    sums_logs = True
    _saving = _saving_api
    _training_flag = "_expects_training_arg"
    _variable_lists = ("_trainable_weights", "_non_trainable_weights")

    # --- variables -----------------------------------------------------------------------------

    def value(self, variable):
        # Under a mixed policy layers hold a wrapper that casts on reading.
        return getattr(variable, "_variable", variable) if _casts(variable) else variable

    def path(self, variable):
        return variable.name.removesuffix(":0")

    def random_state(self, model):
        # Dropout draws from a state inside TensorFlow's kernels that cannot be read. A
        # `tf.random.Generator` has a variable; tf_keras keeps it out of weights and checkpoints.
        with model.distribute_strategy.scope():
            generators = _generators(model)
            for generator in generators:
                if generator._rng_type == generator.RNG_LEGACY_STATEFUL:
                    generator._rng_type, generator._built = generator.RNG_STATEFUL, False
                    vars(generator)["_keras_efficient_legacy"] = True
                generator._maybe_init()
        return [g._generator.state for g in generators if g._generator is not None]

    def reset_random_state(self, model):
        for generator in _generators(model):
            if vars(generator).pop("_keras_efficient_legacy", False):
                generator._rng_type = generator.RNG_LEGACY_STATEFUL
                generator._generator = None

    # --- layers --------------------------------------------------------------------------------

    def set_policy(self, layer, policy):
        layer._set_dtype_policy(policy)

    def add_weight(self, layer, name, shape, dtype, initializer, *, trainable):
        per_replica = {
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.MEAN,
        }
        return layer.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            trainable=trainable,
            experimental_autocast=False,
            **({} if trainable else per_replica),
        )

    def variable_attributes(self, layer):
        own = {id(v) for v in self.own_variables(layer)}
        return {name: value for name, value in vars(layer).items() if id(value) in own}

    def add_sublayer(self, layer, name, child):
        setattr(layer, name, child)

    def remove_sublayer(self, layer, name):
        delattr(layer, name)
        # `delattr` leaves it in the object graph that a SavedModel is made of.
        layer._delete_tracking(name)

    def remove_variable(self, layer, variable):
        for group in (layer._trainable_weights, layer._non_trainable_weights):
            group[:] = [v for v in group if v is not variable]
        # Its regularizer leaves the loss, too.
        losses = layer._callable_losses
        losses[:] = [f for f in losses if all(a is not variable for a in getattr(f, "args", ()))]

    def _forget_attribute(self, layer, name, variable):
        layer._delete_tracking(name)
        layer._obj_reference_counts.pop(variable, None)

    def _maker(self, variable):
        settings = {"dtype": variable.dtype, "trainable": variable.trainable}
        settings["name"], casts = variable.name.removesuffix(":0"), _casts(variable)
        if casts:
            settings["dtype"] = variable._variable.dtype

        def make(value):
            made = tf.Variable(value, **settings)
            return _autocast.create_autocast_variable(made) if casts else made

        return make

    def attach_variable(self, layer, slot, variable):
        # As `setattr` does, but the attribute keeps its place among the others.
        vars(layer)[slot.name] = variable
        layer._track_trackable(variable, slot.name, overwrite=True)
        counts = layer._obj_reference_counts
        counts[variable] = counts.get(variable, 0) + 1
        getattr(layer, slot.group).insert(slot.index, variable)

    def autocast(self, tensor):
        dtype = getattr(_autocast._autocast_dtype, "dtype", None)
        return tensor if dtype is None or not tensor.dtype.is_floating else tf.cast(tensor, dtype)

    def in_call(self):
        return _base_layer_utils.call_context().in_call

    def with_value(self, variable, value):
        return value

    def set_trainable(self, layer, variable, trainable):
        # The trainability of a `tf.Variable` is fixed, and in another list of the layer it would
        # be saved in another order; see `class_attributes`.
        frozen = vars(layer)[_FROZEN] = vars(layer).get(_FROZEN, set()) - {id(variable)}
        if not trainable:
            frozen.add(id(variable))

    def is_trainable(self, layer, variable):
        own = any(variable is v for v in layer._trainable_weights)
        return own and id(variable) not in vars(layer).get(_FROZEN, ())

    def class_attributes(self):
        return {
            "trainable_weights": property(_trainable_weights),
            "non_trainable_weights": property(_non_trainable_weights),
            "weights": property(_weights),
        }

    def converted(self, layer, call):
        if tf.executing_eagerly() or not layer._should_use_autograph():
            return call
        autograph = tf.__internal__.autograph
        return autograph.tf_convert(call, autograph.control_status_ctx())

    def replay(self, layer, kwargs):
        return TfKerasReplay.of(layer, kwargs)

    def is_bert_self_attention(self, layer_class):
        return hugging_face.is_bert_self_attention(layer_class)

    def call_specs(self, model):
        spec = model.save_spec(dynamic_batch=True)
        if spec is None:
            return []
        args, kwargs = spec
        given = {name: value for name, value in kwargs.items() if name != "training"}
        return [(list(args), given)]

    def _rebuild_graph(self, model, made, called):
        inputs = tf.nest.map_structure(
            lambda x: tf_keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.node.layer.name),
            model._nested_inputs,
        )
        # A node takes each tensor that it reads from the end of a list.
        uses = model._tensor_usage_count
        tensors = {}
        for old, new in zip(model.inputs, tf.nest.flatten(inputs), strict=True):
            tensors[str(id(old))] = [new] * uses[str(id(old))]
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if not node.is_input and all(key in tensors for key in node.flat_input_ids):
                    args, kwargs = node.map_arguments(tensors)
                    results = called(made(node.layer), *args, **kwargs)
                    for old, new in _aligned(node.outputs, results):
                        tensors[str(id(old))] = [new] * uses[str(id(old))]
        outputs = [tensors[str(id(output))].pop() for output in model.outputs]
        outputs = tf.nest.pack_sequence_as(model._nested_outputs, outputs)
        return type(model)(inputs, outputs, name=model.name)

    def dropout_seed(self, layer):
        generator = layer._random_generator
        return generator.random_uniform([2], 0, tf.int32.max, dtype=tf.int32)

    # --- training ------------------------------------------------------------------------------

    def _reset_optimizer(self, optimizer, model):
        built = getattr(optimizer, "_built", False)
        if not built or not isinstance(optimizer, tf_keras.optimizers.Optimizer):
            return
        trained, present = (
            {optimizer._var_key(v) for v in variables}
            for variables in (model.trainable_variables, model.weights)
        )
        if trained <= set(optimizer._index_dict) <= present:
            return
        kept = [optimizer.iterations, getattr(optimizer, "_learning_rate", None)]
        optimizer._variables[:] = [v for v in optimizer._variables if any(v is k for k in kept)]
        optimizer._index_dict = {}
        optimizer._built = False

    def _custom_loss(self, model, x, y, y_pred, sample_weight):
        return model.compute_loss(x, y, y_pred, sample_weight)

    def _added_losses(self, model):
        added = []
        for layer in model._flatten_layers():
            eager = layer._eager_losses
            if not eager:
                added.extend(layer._losses)
            elif eager[0] is not _base_layer_utils.REVIVED_LOSS_PLACEHOLDER:
                added.extend(eager)
        return tf.add_n(added) if added else None

    def _regularization(self, model):
        losses = [loss() for layer in model._flatten_layers() for loss in layer._callable_losses]
        losses = [loss for loss in losses if loss is not None]
        return tf.add_n(losses) if losses else None

    def _compiled_loss(self, model, x, y, y_pred, sample_weight):
        frozen = self.frozen_loss_tracker(model)
        with frozen, losses.recorded() as recorded:
            return model.compiled_loss(y, y_pred, sample_weight), recorded

    def _update_metrics(self, model, x, y, y_pred, sample_weight, loss):
        model._validate_target_and_loss(y, loss)
        if type(model).compute_metrics is not tf_keras.Model.compute_metrics:
            model.compute_metrics(x, y, y_pred, sample_weight)
        else:
            model.compiled_metrics.update_state(y, y_pred, sample_weight)

    def _losses(self, model):
        compiled = model.compiled_loss
        return [] if compiled is None else tf.nest.flatten(compiled._losses)

    def _compiled_parts(self, model):
        return [model.compiled_loss, model.compiled_metrics]

    def recorded_losses(self):
        return losses.recorded()

    def without_replica_scaling(self):
        return losses.without_replica_scaling()

    def loss_tracker(self, model):
        return model.compiled_loss._total_loss_mean

    def build_loss_tracker(self, model):
        if not model.compiled_loss.built:
            model.compiled_loss.build(tf.zeros([1, 1]))

    def track_loss(self, model, loss, examples):
        # A custom `compute_loss` updates its own metrics, in every microbatch.
        if self.has_custom_train_step(model) or not self.has_custom_compute_loss(model):
            self.loss_tracker(model).update_state(loss, sample_weight=examples)

    def loss_scale(self, model):
        optimizer = model.optimizer
        if not isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer):
            return None
        wrapper: Any = optimizer
        if not wrapper.dynamic:
            return LossScale(wrapper.inner_optimizer, wrapper.initial_scale)
        state = wrapper._loss_scale
        return LossScale(
            wrapper.inner_optimizer,
            state.current_loss_scale,
            state.counter,
            wrapper.dynamic_growth_steps,
        )

    def apply(self, model, gradients, variables, replacements):
        optimizer, pairs = self.optimizer(model), list(zip(gradients, variables, strict=True))
        if not tf.distribute.has_strategy():
            optimizer.apply_gradients(pairs)
        elif isinstance(optimizer, tf_keras.optimizers.Optimizer):
            optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
        else:
            # Model Garden's AdamW leaves clipping to its caller if it does not sum gradients.
            norm = getattr(optimizer, "gradient_clip_norm", 0)
            if norm > 0:
                gradients, _ = tf.clip_by_global_norm(gradients, norm)
                pairs = list(zip(gradients, variables, strict=True))
            optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

    @contextmanager
    def record_gradients(self, model, weight, terms=None, others=()):
        # `result` of a metric synchronises replicas, which is impossible in a loop.
        metrics = model.metrics if tf.distribute.has_strategy() else []
        recording = super().record_gradients(model, weight, terms, others)
        with recording as recorder, ExitStack() as stack:
            for metric in metrics:
                stack.enter_context(patched(metric, result=lambda: tf.constant(0.0)))
            yield recorder

    def own_loss(self, model):
        return own_loss(model)

    def steps_per_execution(self, model):
        steps = model._steps_per_execution
        return 1 if steps is None else int(steps.numpy())

    def count_step(self, model):
        model._train_counter.assign_add(1)


def _aligned(old, new):
    """Pairs of two structures; of lists that differ in length, such as one per block, the ends."""
    if isinstance(old, dict):
        return [pair for key in old for pair in _aligned(old[key], new[key])]
    if isinstance(old, list | tuple):
        pairs = zip(reversed(old), reversed(new), strict=False)
        return [pair for a, b in pairs for pair in _aligned(a, b)]
    return [(old, new)]


def _of_super(layer, name):
    return getattr(super(type(layer), layer), name)


def _trainable_weights(layer):
    frozen = vars(layer).get(_FROZEN, ())
    return [v for v in _of_super(layer, "trainable_weights") if id(v) not in frozen]


def _non_trainable_weights(layer):
    ids = vars(layer).get(_FROZEN, ())
    frozen = [v for v in _of_super(layer, "trainable_weights") if id(v) in ids]
    return [*frozen, *_of_super(layer, "non_trainable_weights")]


def _weights(layer):
    # The order before any was frozen, so that the arrays of `get_weights` keep their positions.
    ordered = [*_of_super(layer, "trainable_weights"), *_of_super(layer, "non_trainable_weights")]
    return list({id(v): v for v in ordered}.values())


def _generators(model) -> list[Any]:
    """Return the random generators of the layers of a model, such as Dropout's."""
    found = [getattr(layer, "_random_generator", None) for layer in model._flatten_layers()]
    return [g for g in found if isinstance(g, RandomGenerator)]


def _casts(variable):
    return type(variable).__name__.startswith("AutoCast")
