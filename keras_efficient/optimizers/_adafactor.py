"""Adafactor, Adam with a factored second moment, for both libraries."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Flavor, Model, Optimizer
from keras_efficient.optimizers._mixins import (
    CustomUpdateMixin,
    make_optimizer,
    make_optimizer_class,
)
from keras_efficient.optimizers._param_groups import Groups
from keras_efficient.optimizers._validation import LearningRate, check_number


def Adafactor(
    learning_rate: LearningRate = 0.01,
    *,
    weight_decay: float = 0.0,
    relative_step: bool = True,
    clip_threshold: float = 1.0,
    exclude: str | Sequence[str] = (),
    groups: Groups = (),
    layerwise_decay: float | None = None,
    global_clipnorm: float | None = None,
    library: str | Model = "keras",
) -> Optimizer:
    """Create an Adafactor optimizer: a factored second moment, and almost no state.

        β = 1 - t^(-0.8),  s = g² + 10⁻³⁰
        R ← β R + (1-β) mean(s, -1),  C ← β C + (1-β) mean(s, -2),  V = R Cᵀ / mean(R, -1)
            (vectors and scalars: V ← β V + (1-β) s)
        u = g / √V,  u ← u / max(1, RMS(u) / d)
        θ ← θ - ρ max(10⁻³, RMS(θ)) u - ρ λ θ
        ρ = min(η, 1/√t)       (η for a schedule, or with relative_step=False)

    Tensors with more than two axes are factored over their last two.

    The `Adafactor`s of both libraries keep a full-size V for every variable, which is the memory
    that the method is meant to save. They also limit ρ to 1/√t whatever `relative_step` is,
    schedules included, and give NaN in float32 where a gradient has both a zero row and a zero
    column.

    Args:
        learning_rate: float >= 0, a `ke.schedules` schedule, or the library's own schedule: η,
            relative to the root mean square of the weights. Default: 0.01.
        weight_decay: float >= 0, λ, multiplied by ρ. Default: 0.
        relative_step: bool, whether to limit a constant learning rate to 1/√t, as in the paper.
            Default: True.
        clip_threshold: float > 0, d, the largest RMS of an update before it is multiplied by the
            step size. Default: 1.
        exclude: regular expression, or a sequence of them. A variable whose path contains a match
            is not decayed. `ke.optimizers.NO_DECAY` matches biases and normalisation layers.
            Default: `()`, no exclusions.
        groups: mapping of regular expressions to `ke.optimizers.ParamGroup`, or a sequence of such
            pairs: learning-rate multipliers and decays for the variables whose paths contain a
            match. The first match wins; `exclude` applies within every group. Default: `()`.
        layerwise_decay: float in (0, 1] or None, d: of L layers, layer i = 0 … L-1 trains at
            d^(L-i) times the learning rate, the embeddings at d^(L+1) and the head at 1 times
            (ELECTRA, BEiT); see `ke.optimizers.layer_depths`. Default: None, one rate for all.
        global_clipnorm: float > 0 or None. The gradients of all variables are scaled down together
            to at most this global L2 norm. Default: None, no clipping.
        library: "keras" or "tf_keras", or a model of either: the library whose optimizer to
            create. Each library's `compile` rejects the other's. Default: "keras".

    Returns:
        An instance of a subclass of `keras.optimizers.Adafactor` or
        `tf_keras.optimizers.Adafactor`.

    Raises:
        TypeError: `learning_rate` is neither a number nor a schedule of this package or of the
            library, or `groups` does not map patterns to `ParamGroup`.
        ValueError: a number is out of its range, a pattern is not a regular expression, or
            `library` is unknown.

    Examples:
        >>> model.compile(ke.optimizers.Adafactor(1e-3, relative_step=False), loss)

    Reference:
        Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost".
    """
    check_number("clip_threshold", clip_threshold, exclusive=True)
    return make_optimizer(
        library,
        optimizer_class,
        learning_rate,
        weight_decay=weight_decay,
        relative_step=relative_step,
        clip_threshold=clip_threshold,
        exclude=exclude,
        groups=groups,
        layerwise_decay=layerwise_decay,
        global_clipnorm=global_clipnorm,
    )


def optimizer_class(flavor: Flavor) -> type:
    """Return the Adafactor class of a library."""
    update: Any = AdafactorUpdate
    return make_optimizer_class(flavor, "Adafactor", "Adafactor", update)


class AdafactorUpdate(CustomUpdateMixin):
    """Adafactor's slots and update rule, with the constructor of the library's Adafactor."""

    def build(self, variables):
        if getattr(self, "_built", False):
            return
        variables, flavor = list(variables), flavors.of(self)
        self._assign_rules(variables)
        # Skip the library's own `Adafactor.build`, which creates a full-size V.
        flavor.keras.optimizers.Optimizer.build(self, variables)
        self._moments = []
        for variable in variables:
            # Under a mixed-precision policy tf_keras wraps its variables.
            shape, dtype = list(variable.shape), flavor.value(variable).dtype
            names = {"v": shape}
            if len(shape) >= 2:
                names = {"r": shape[:-1], "c": [*shape[:-2], shape[-1]]}
            dtype = tf.as_dtype(dtype).name
            self._moments.append(
                [self.add_variable(s, dtype=dtype, name=name) for name, s in names.items()]
            )
        # Keras 3's base class has set this already; tf_keras' subclasses set it themselves.
        self._built = True

    def _step_rate(self, learning_rate, dtype):
        rate = super()._step_rate(learning_rate, dtype)
        schedules = flavors.of(self).keras.optimizers.schedules
        if self.relative_step and not isinstance(
            self._learning_rate, schedules.LearningRateSchedule
        ):
            rate = tf.minimum(rate, tf.math.rsqrt(self._time(dtype)))
        return rate

    def _update(self, gradient, variable, index, rate):
        dtype = variable.dtype
        moments = list(map(flavors.of(self).value, self._moments[index]))
        beta = 1 - self._time(dtype) ** tf.constant(self.beta_2_decay, dtype)
        square = tf.square(gradient) + tf.constant(self.epsilon_1, dtype)
        for axis, moment in zip((-1, -2), moments, strict=False):
            new = tf.reduce_mean(square, axis) if len(moments) == 2 else square
            moment.assign(beta * moment + (1 - beta) * new)
        update = gradient * inverse_root(*moments)
        update /= tf.maximum(tf.ones([], dtype), rms(update) / self.clip_threshold)
        update *= tf.maximum(tf.constant(self.epsilon_2, dtype), rms(variable))
        if decay := self._decay(variable):
            update += decay * variable
        variable.assign_sub(rate * update)


def rms(tensor: tf.Tensor) -> tf.Tensor:
    """Return the root mean square of a tensor as a scalar."""
    return tf.sqrt(tf.reduce_mean(tf.square(tensor)))


def inverse_root(rows: tf.Tensor, columns: tf.Tensor | None = None) -> tf.Tensor:
    """Return 1 / √V, from V itself or from its row and column means."""
    if columns is None:
        return tf.math.rsqrt(rows)
    # Multiplied one at a time: the product of two small means underflows in float32.
    mean = tf.reduce_mean(rows, -1, keepdims=True)
    rows = tf.math.rsqrt(rows) * tf.sqrt(mean)
    return tf.expand_dims(rows, -1) * tf.expand_dims(tf.math.rsqrt(columns), -2)
