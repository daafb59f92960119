"""LAMB, Adam with a layer-wise trust ratio, for both libraries."""

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
from keras_efficient.optimizers._validation import LearningRate, check_adam


def LAMB(
    learning_rate: LearningRate = 1e-3,
    *,
    weight_decay: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    exclude: str | Sequence[str] = (),
    groups: Groups = (),
    layerwise_decay: float | None = None,
    global_clipnorm: float | None = None,
    library: str | Model = "keras",
) -> Optimizer:
    """Create a LAMB optimizer: Adam with a layer-wise trust ratio, for very large batches.

        m ← β₁ m + (1-β₁) g,  v ← β₂ v + (1-β₂) g²
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε) + λ θ
        θ ← θ - η r u,  r = ‖θ‖ / ‖u‖, or 1 if either norm is 0

    Excluded variables get neither weight decay nor a trust ratio: λ = 0 and r = 1. Exclude
    `NO_DECAY`, as the authors' code for BERT does.

    Keras 3's own `Lamb` applies the decay outside the trust ratio and cannot exempt variables from
    the ratio; tf_keras has no LAMB. Model Garden's agrees with this one, but is a legacy optimizer.

    Args:
        learning_rate: float >= 0, a `ke.schedules` schedule, or the library's own schedule: η. The
            paper uses 5e-4 at a batch of 512, times √2 for each doubling. Default: 1e-3.
        weight_decay: float >= 0, λ, inside the trust ratio. Default: 0.01.
        beta_1: float in [0, 1), β₁, the decay of the first moment. Default: 0.9.
        beta_2: float in [0, 1), β₂, the decay of the second moment. Default: 0.999.
        epsilon: float > 0, ε. Default: 1e-6.
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
        An instance of a subclass of `keras.optimizers.Adam` or `tf_keras.optimizers.Adam`, with
        the same slots.

    Raises:
        TypeError: `learning_rate` is neither a number nor a schedule of this package or of the
            library, or `groups` does not map patterns to `ParamGroup`.
        ValueError: a number is out of its range, a pattern is not a regular expression, or
            `library` is unknown.

    Examples:
        >>> model.compile(ke.optimizers.LAMB(1e-3, exclude=ke.optimizers.NO_DECAY), loss)

    Reference:
        You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes".
    """
    check_adam(beta_1, beta_2, epsilon)
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


def optimizer_class(flavor: Flavor) -> type:
    """Return the LAMB class of a library."""
    update: Any = LambUpdate
    return make_optimizer_class(flavor, "LAMB", "Adam", update)


class LambUpdate(CustomUpdateMixin):
    """LAMB's update rule, on the slots of the library's Adam."""

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


def trust_ratio(value: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
    """Return ‖value‖ / ‖update‖ as a scalar, or 1 if either norm is 0."""
    ratio = tf.math.divide_no_nan(tf.norm(value), tf.norm(update))
    return tf.where(ratio > 0, ratio, tf.ones_like(ratio))
