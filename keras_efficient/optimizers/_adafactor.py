"""Adafactor for both libraries."""

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.optimizers._mixins import (
    CustomUpdateMixin,
    make_optimizer,
    make_optimizer_class,
)
from keras_efficient.optimizers._validation import check, shared


@shared
def Adafactor(
    learning_rate=0.01,
    *,
    weight_decay=0.0,
    relative_step=True,
    clip_threshold=1.0,
    exclude=(),
    groups=(),
    layerwise_decay=None,
    global_clipnorm=None,
    library="keras",
):
    """Adam's second moment from its row and column means: hardly any state.

        β = 1 - t^(-0.8),  s = g² + 10⁻³⁰
        R ← β R + (1-β) mean(s, -1),  C ← β C + (1-β) mean(s, -2),  V = R Cᵀ / mean(R, -1)
            (vectors and scalars: V ← β V + (1-β) s)
        u = g / √V,  u ← u / max(1, RMS(u) / d)
        θ ← θ - ρ max(10⁻³, RMS(θ)) u - ρ λ θ
        ρ = min(η, 1/√t)       (or η, if it is a schedule or with relative_step=False)

    Tensors of more than two axes are factored over their last two.

    The libraries' own `Adafactor`s hold a V of full size for every variable (the memory that the
    method is there to save), cut ρ at 1/√t whatever `relative_step` says, schedules too, and give
    NaN in float32 where a gradient has both a row and a column of zeros.

    Args:
        learning_rate: float, a `ke.schedules` schedule, or the library's own schedule: η, relative
            to the size of the weights.
        weight_decay: float >= 0, λ, relative to ρ.
        relative_step: bool, whether a constant rate falls as 1/√t, as in the paper.
        clip_threshold: float > 0, d: the largest RMS of an update before it is scaled.
        {shared}

    Returns:
        An instance of a subclass of `keras.optimizers.Adafactor` or
        `tf_keras.optimizers.Adafactor`.

    Raises:
        ValueError, TypeError: an argument is out of its range, or of the wrong library.

    Example:
        >>> model.compile(ke.optimizers.Adafactor(1e-3, relative_step=False), loss)

    Reference:
        Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost".
    """
    check("clip_threshold", clip_threshold, exclusive=True)
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


def optimizer_class(flavor):
    """The class, of a library."""
    return make_optimizer_class(flavor, "Adafactor", "Adafactor", Factored)


class Factored(CustomUpdateMixin):
    """Adafactor's slots and update; the arguments are those of the library's Adafactor."""

    def build(self, variables):
        if getattr(self, "_built", False):
            return
        variables, flavor = list(variables), flavors.of(self)
        self._assign(variables)
        # Past the library's Adafactor, which would make a V of full size.
        flavor.keras.optimizers.Optimizer.build(self, variables)
        self._moments = []
        for variable in variables:
            # Under a mixed policy tf_keras' variables are wrapped.
            shape, dtype = list(variable.shape), flavor.value(variable).dtype
            names = {"v": shape}
            if len(shape) >= 2:
                names = {"r": shape[:-1], "c": [*shape[:-2], shape[-1]]}
            dtype = tf.as_dtype(dtype).name
            self._moments.append(
                [self.add_variable(s, dtype=dtype, name=name) for name, s in names.items()]
            )
        # As tf_keras marks it; Keras 3 has marked it already.
        self._built = True

    def _rate(self, given, dtype):
        rate = super()._rate(given, dtype)
        schedules = flavors.of(self).keras.optimizers.schedules
        if self.relative_step and not isinstance(
            self._learning_rate, schedules.LearningRateSchedule
        ):
            rate = tf.minimum(rate, tf.math.rsqrt(self._time(dtype)))
        return rate

    def _update(self, gradient, variable, index, rate):
        dtype = variable.dtype
        moments = list(map(flavors.of(self).value, self._moments[index]))
        keep = 1 - self._time(dtype) ** tf.constant(self.beta_2_decay, dtype)
        square = tf.square(gradient) + tf.constant(self.epsilon_1, dtype)
        for axis, moment in zip((-1, -2), moments, strict=False):
            new = tf.reduce_mean(square, axis) if len(moments) == 2 else square
            moment.assign(keep * moment + (1 - keep) * new)
        update = gradient * inverse_root(*moments)
        update /= tf.maximum(tf.ones([], dtype), rms(update) / self.clip_threshold)
        size = tf.maximum(tf.constant(self.epsilon_2, dtype), rms(variable))
        update *= size
        if decay := self._decay(variable):
            update += decay * variable
        variable.assign_sub(rate * update)


def rms(tensor):
    """The root of the mean square."""
    return tf.sqrt(tf.reduce_mean(tf.square(tensor)))


def inverse_root(rows, columns=None):
    """1 / √V, of V or of its row and column means."""
    if columns is None:
        return tf.math.rsqrt(rows)
    # A factor after the other: the product of two small means would be 0 in float32.
    mean = tf.reduce_mean(rows, -1, keepdims=True)
    rows = tf.math.rsqrt(rows) * tf.sqrt(mean)
    return rows[..., None] * tf.math.rsqrt(columns)[..., None, :]
