"""Run a layer's `call` a second time as if it were the first: same draws, no side effects.

What differs between the libraries: how the state of the call around the layer is found and put
back (training, autocast), where random draws come from, and how updates of state are held back.
"""

import copy
from contextlib import contextmanager

import tensorflow as tf


def replay(flavor, layer, kwargs):
    """The contexts `first()` and `again()` for two runs of `layer.call`, or None if one will do.

    That is outside of training, in Keras' symbolic calls, and while a model is being saved.
    """
    kind = _Keras3Replay if flavor.name == "keras" else _TfKerasReplay
    return kind.of(layer, kwargs)


def converted(flavor, layer, call):
    """`call` as the library would call it: tf_keras lets AutoGraph convert layers' code."""
    if flavor.name == "keras" or tf.executing_eagerly() or not layer._should_use_autograph():
        return call
    autograph = tf.__internal__.autograph
    return autograph.tf_convert(call, autograph.control_status_ctx())


class _Keras3Replay:
    """Keras 3: all state lives in Keras variables, which a `StatelessScope` stands in for.

    Both runs happen in such a scope. After the first, the updates (of seed generators, of
    BatchNormalization's averages) are made for real; those of the second are dropped, and it reads
    the values from before.
    """

    @classmethod
    def of(cls, layer, kwargs):
        from keras.src import backend
        from keras.src.backend.common import global_state

        context = global_state.get_global_attribute("current_call_ctx")
        training = kwargs.get("training", context and context.get_value("training"))
        if training is None or training is False or backend.in_stateless_scope():
            return None
        return cls(layer, copy.copy(context), backend.get_autocast_scope())

    def __init__(self, layer, context, autocast):
        self.layer, self.context, self.autocast = layer, context, autocast
        self.before = []

    @contextmanager
    def first(self):
        scope = _recording_scope()
        with scope:
            yield
        if scope.losses:
            raise _adds_a_loss(self.layer)
        # Nothing has been assigned yet.
        self.before = [(v, tf.identity(v.value)) for v, _ in scope.updates.values()]
        for variable, value in scope.updates.values():
            variable.assign(value)

    @contextmanager
    def again(self):
        import keras
        from keras.src import backend
        from keras.src.backend.common import global_state

        outer = global_state.get_global_attribute("current_call_ctx")
        global_state.set_global_attribute("current_call_ctx", copy.copy(self.context))
        dtype = self.autocast.dtype if self.autocast is not None else None
        try:
            with backend.AutocastScope(dtype), keras.StatelessScope(self.before):
                yield
        finally:
            global_state.set_global_attribute("current_call_ctx", outer)


def _recording_scope():
    import keras

    class Recording(keras.StatelessScope):
        """Keeps the variables that were assigned, besides their values."""

        def __init__(self):
            super().__init__(collect_losses=True)
            self.updates = {}

        def add_update(self, update):
            super().add_update(update)
            self.updates[id(update[0])] = update

    return Recording()


class _TfKerasReplay:
    """tf_keras: its random generators draw from one seed instead, and state is put back.

    The seed is drawn anew for every call, by a stateful op as tf_keras' own draws are. Each draw
    of a run takes the seed folded with its number, so both runs draw the same.
    """

    @classmethod
    def of(cls, layer, kwargs):
        from tf_keras.src.engine import base_layer_utils

        context = base_layer_utils.call_context()
        training = kwargs.get("training", context.training)
        if training is None or training is False or context.saving or context.in_keras_graph:
            return None
        return cls(layer, dict(context.call_context_args))

    def __init__(self, layer, context_args):
        self.layer, self.context_args = layer, context_args
        self.sublayers = list(layer._flatten_layers())
        # Those of frozen layers remain trainable as tf.Variables.
        self.state = [v for v in layer.weights if not v.trainable]
        self.generators = [
            layer._random_generator
            for layer in self.sublayers
            if hasattr(layer, "_random_generator")
        ]
        self.seed = None
        if self.generators:
            self.seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        self.before = []

    @contextmanager
    def first(self):
        self.before = [tf.identity(variable) for variable in self.state]
        losses = self._losses()
        with self._drawing():
            yield
        if self._losses() != losses:
            raise _adds_a_loss(self.layer)

    @contextmanager
    def again(self):
        from tf_keras.src.engine import base_layer_utils
        from tf_keras.src.mixed_precision import autocast_variable

        after = [tf.identity(variable) for variable in self.state]
        _assign(self.state, self.before)
        entered = base_layer_utils.call_context().enter(
            layer=self.layer,
            inputs=None,
            build_graph=not tf.executing_eagerly(),
            call_context_args=self.context_args,
        )
        casting = autocast_variable.enable_auto_cast_variables(self.layer._compute_dtype_object)
        with entered, casting, self._drawing():
            yield
        _assign(self.state, after)

    def _losses(self):
        return sum(len(layer._losses) + len(layer._eager_losses) for layer in self.sublayers)

    @contextmanager
    def _drawing(self):
        draws = _Draws(self.seed)
        for generator in self.generators:
            # Past the tracking of attributes.
            vars(generator).update({name: getattr(draws, name) for name in _DRAWS})
        try:
            yield
        finally:
            for generator in self.generators:
                for name in _DRAWS:
                    del vars(generator)[name]


_DRAWS = (
    "dropout",
    "random_normal",
    "random_uniform",
    "truncated_normal",
    "make_seed_for_stateless_op",
)


class _Draws:
    """Stands in for the methods of tf_keras' `RandomGenerator`."""

    def __init__(self, seed):
        self.seed, self.number = seed, 0

    def make_seed_for_stateless_op(self):
        self.number += 1
        return tf.random.experimental.stateless_fold_in(self.seed, self.number)

    def dropout(self, inputs, rate, noise_shape=None):
        seed = self.make_seed_for_stateless_op()
        return tf.nn.experimental.stateless_dropout(
            inputs, rate=rate, seed=seed, noise_shape=noise_shape
        )

    def random_normal(self, shape, mean=0.0, stddev=1.0, dtype=None, nonce=None):
        seed = self.make_seed_for_stateless_op()
        return tf.random.stateless_normal(shape, seed, mean, stddev, dtype or tf.float32)

    def random_uniform(self, shape, minval=0.0, maxval=None, dtype=None, nonce=None):
        seed = self.make_seed_for_stateless_op()
        maxval = 1.0 if maxval is None else maxval
        return tf.random.stateless_uniform(shape, seed, minval, maxval, dtype or tf.float32)

    def truncated_normal(self, shape, mean=0.0, stddev=1.0, dtype=None, nonce=None):
        seed = self.make_seed_for_stateless_op()
        return tf.random.stateless_truncated_normal(shape, seed, mean, stddev, dtype or tf.float32)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _adds_a_loss(layer):
    return ValueError(
        "A layer whose activations are computed again may not add a loss in its call, whose "
        f"gradient would be lost. Received: {layer.name!r} ({type(layer).__name__}), which called "
        "`add_loss` or has an activity regularizer inside. Leave it out of `ke.remat`'s `layers`."
    )
