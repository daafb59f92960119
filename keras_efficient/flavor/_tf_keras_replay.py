"""Run a tf_keras layer's `call` twice with the same random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tf_keras.src.engine import base_layer_utils
from tf_keras.src.mixed_precision import autocast_variable

from keras_efficient.flavor._added_loss_error import added_loss_error


class TfKerasReplay:
    """Two runs of a layer's `call`; see `Flavor.replay`.

    Random generators draw from one seed, which a stateful op draws anew for every call, as
    tf_keras' own draws are. Each draw of a run folds its number into the seed, so both runs draw
    the same numbers. State that the first run changed is restored for the second one.
    """

    @classmethod
    def of(cls, layer: Any, kwargs: dict[str, Any]) -> "TfKerasReplay | None":
        """Return a replay of the call that is being made, or None if one run is enough."""
        context = base_layer_utils.call_context()
        training = kwargs.get("training", context.training)
        if training is None or training is False or context.saving or context.in_keras_graph:
            return None
        return cls(layer, dict(context.call_context_args))

    def __init__(self, layer: Any, context_args: dict[str, Any]):
        self.layer, self.context_args = layer, context_args
        self.sublayers = list(layer._flatten_layers())
        # Variables of frozen layers remain trainable as tf.Variables.
        self.state = [
            v for v in (*layer.trainable_weights, *layer.non_trainable_weights) if not v.trainable
        ]
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
    def first(self) -> Iterator[None]:
        """Surround the first run; raises a ValueError if the layer adds a loss."""
        self.before = [tf.identity(variable) for variable in self.state]
        losses = self._losses()
        with self._fixed_draws():
            yield
        if self._losses() != losses:
            raise added_loss_error(self.layer)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Surround the second run."""
        after = [tf.identity(variable) for variable in self.state]
        _assign(self.state, self.before)
        entered = base_layer_utils.call_context().enter(
            layer=self.layer,
            inputs=None,
            build_graph=not tf.executing_eagerly(),
            call_context_args=self.context_args,
        )
        casting = autocast_variable.enable_auto_cast_variables(self.layer._compute_dtype_object)
        with entered, casting, self._fixed_draws():
            yield
        _assign(self.state, after)

    def _losses(self):
        return sum(len(layer._losses) + len(layer._eager_losses) for layer in self.sublayers)

    @contextmanager
    def _fixed_draws(self):
        draws = _FixedDraws(self.seed)
        for generator in self.generators:
            # Written past the tracking of attributes.
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
_random: Any = tf.random


class _FixedDraws:
    """Replacements for the methods of tf_keras' `RandomGenerator`, drawing from one seed."""

    def __init__(self, seed):
        self.seed, self.number = seed, 0

    def make_seed_for_stateless_op(self):
        self.number += 1
        return _random.experimental.stateless_fold_in(self.seed, self.number)

    def dropout(self, inputs, rate, noise_shape=None):
        seed = self.make_seed_for_stateless_op()
        return tf.nn.experimental.stateless_dropout(
            inputs, rate=rate, seed=seed, noise_shape=noise_shape
        )

    def random_normal(self, shape, mean=0.0, stddev=1.0, dtype=None, nonce=None):
        seed = self.make_seed_for_stateless_op()
        return _random.stateless_normal(shape, seed, mean, stddev, dtype or tf.float32)

    def random_uniform(self, shape, minval=0.0, maxval=None, dtype=None, nonce=None):
        seed = self.make_seed_for_stateless_op()
        maxval = 1.0 if maxval is None else maxval
        return _random.stateless_uniform(shape, seed, minval, maxval, dtype or tf.float32)

    def truncated_normal(self, shape, mean=0.0, stddev=1.0, dtype=None, nonce=None):
        seed = self.make_seed_for_stateless_op()
        return _random.stateless_truncated_normal(shape, seed, mean, stddev, dtype or tf.float32)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
