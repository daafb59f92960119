"""LAMB for both libraries."""

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.optimizers._mixins import (
    CustomUpdateMixin,
    make_optimizer,
    make_optimizer_class,
)
from keras_efficient.optimizers._validation import check, shared


@shared
def LAMB(
    learning_rate=1e-3,
    *,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    exclude=(),
    groups=(),
    layerwise_decay=None,
    global_clipnorm=None,
    library="keras",
):
    """Adam whose step is, in each variable, as long as the variable: for very large batches.

        m ← β₁ m + (1-β₁) g,  v ← β₂ v + (1-β₂) g²
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε) + λ θ
        θ ← θ - η r u,  r = ‖θ‖ / ‖u‖,  1 if either is 0

    Excluded variables get neither decay nor trust ratio: λ = 0 and r = 1. Exclude `NO_DECAY`,
    as the paper's code for BERT does.

    Keras 3's own `Lamb` decays outside of the trust ratio and has no exclusions from it;
    tf_keras has none. Model Garden's agrees with this one, but is a legacy optimizer.

    Args:
        learning_rate: float, a `ke.schedules` schedule, or the library's own schedule: η. (The
            paper's: 5e-4 at a batch of 512, times √2 for each doubling.)
        weight_decay: float >= 0, λ, inside of the trust ratio.
        beta_1, beta_2: floats in [0, 1).
        epsilon: float > 0.
        {shared}

    Returns:
        An instance of a subclass of `keras.optimizers.Adam` or `tf_keras.optimizers.Adam`, whose
        slots it has.

    Raises:
        ValueError, TypeError: an argument is out of its range, or of the wrong library.

    Example:
        >>> model.compile(ke.optimizers.LAMB(1e-3, exclude=ke.optimizers.NO_DECAY), loss)

    Reference:
        You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes".
    """
    check("beta_1", beta_1, below=1)
    check("beta_2", beta_2, below=1)
    check("epsilon", epsilon, exclusive=True)
    return make_optimizer(
        library,
        optimizer_class,
        learning_rate,
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        exclude=exclude,
        groups=groups,
        layerwise_decay=layerwise_decay,
        global_clipnorm=global_clipnorm,
    )


def optimizer_class(flavor):
    """The class, of a library."""
    return make_optimizer_class(flavor, "LAMB", "Adam", Lamb)


class Lamb(CustomUpdateMixin):
    """LAMB's update, with the slots of a library's Adam."""

    def _update(self, gradient, variable, index, rate):
        flavor, dtype = flavors.of(self), variable.dtype
        m, v = flavor.value(self._momentums[index]), flavor.value(self._velocities[index])
        m.assign_add((gradient - m) * (1 - self.beta_1))
        v.assign_add((tf.square(gradient) - v) * (1 - self.beta_2))
        m_hat = m / (1 - tf.constant(self.beta_1, dtype) ** self._time(dtype))
        v_hat = v / (1 - tf.constant(self.beta_2, dtype) ** self._time(dtype))
        update = m_hat / (tf.sqrt(v_hat) + self.epsilon)
        if decay := self._decay(variable):
            update += decay * variable
        _, rule = self._rule(variable)
        if not rule.excluded:
            rate *= trust_ratio(variable, update)
        variable.assign_sub(rate * update)


def trust_ratio(value, update):
    """‖value‖ / ‖update‖, 1 where either is 0."""
    length, step = tf.norm(value), tf.norm(update)
    ratio = tf.math.divide_no_nan(length, step)
    return tf.where(ratio > 0, ratio, tf.ones_like(ratio))
