"""Steps that look at a batch twice: sharpness-aware minimisation, adversarial embeddings."""

import re
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.training import _replicas as replicas
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._microbatch_step import square_norm


def sam(model, rho=0.05):
    """Sharpness-aware minimisation: take the gradient where the loss is worst nearby.

        ε = ρ · g(θ) / ‖g(θ)‖        θ ← θ - update(g(θ + ε))

    `g` is the gradient of the whole batch, over all microbatches and replicas, so a step is the
    same however the batch is split. Costs a second forward and backward pass and a second
    all-reduce per update. Metrics are those of the first pass.

    Args:
        model: a Keras 3 or tf_keras model; before or after `compile`.
        rho: float > 0, ρ, the radius; None takes SAM away.

    Returns:
        The model.

    Raises:
        ValueError: `rho` is not positive, or `ke.adversarial(method="fgm")` is on: a step has one
            second pass.

    Example:
        >>> ke.sam(model, rho=0.05)
        >>> model.fit(dataset)

    Reference:
        Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization".
    """
    if rho is not None and not (isinstance(rho, int | float) and rho > 0):
        raise ValueError(
            f"`rho` must be a number > 0. Received: {rho!r}. ke.sam(model, None) takes SAM away."
        )
    return set_second_pass(model, "sam", rho and SecondPass("sam", rho, None))


def set_second_pass(model, owner, second_pass):
    """Put a second pass into the model's step, or take the one of `owner` away."""
    flavors.of(model)
    step = train_step_hook.attach(model)
    present = step.second_pass
    if second_pass is not None and present is not None and present.owner != owner:
        raise ValueError(
            f"A step has one second pass. Received: {owner!r} for a model with {present.owner!r}. "
            "Take the other away first: ke.sam(model, None) or ke.adversarial(model, None)."
        )
    if second_pass is not None or (present is not None and present.owner == owner):
        step.second_pass = second_pass
    train_step_hook.detach_if_idle(model)
    return model


@dataclass(frozen=True)
class SecondPass:
    """Move weights along a batch's gradient, for a second gradient.

    Attributes:
        owner: "sam" (the second gradient replaces the first) or "fgm" (they are added).
        radius: float, how far to move (the Euclidean length).
        pattern: regular expression for the paths of the variables to move, or None for all.
    """

    owner: str
    radius: float
    pattern: Any

    def move(self, variables, gradients, paths):
        """Move the chosen variables; returns the function that puts them back, exactly."""
        chosen = [
            (replicas.local(variable), gradient)
            for variable, gradient, path in zip(variables, gradients, paths, strict=True)
            if self.pattern is None or re.search(self.pattern, path)
        ]
        if not chosen:
            raise ValueError(
                "`variables` must match the path of at least one trainable variable. Received: "
                f"{self.pattern!r} for {', '.join(paths)}."
            )
        norm = tf.sqrt(square_norm([gradient for _, gradient in chosen]))
        factor = tf.math.divide_no_nan(self.radius, norm)
        before = []
        for variable, gradient in chosen:
            shift = tf.math.scalar_mul(tf.cast(factor, gradient.dtype), gradient)
            if isinstance(gradient, tf.IndexedSlices):
                rows = tf.gather(variable, gradient.indices)
                before.append(tf.IndexedSlices(rows, gradient.indices))
                variable.scatter_add(shift)
            else:
                before.append(variable.read_value())
                variable.assign_add(shift)

        def restore():
            for (variable, _), value in zip(chosen, before, strict=True):
                if isinstance(value, tf.IndexedSlices):
                    variable.scatter_update(value)
                else:
                    variable.assign(value)

        return restore

    def combine(self, first, second):
        """The gradients to apply."""
        if self.owner == "sam":
            return second
        return [_add(a, b) for a, b in zip(first, second, strict=True)]


def _add(one, other):
    if not isinstance(one, tf.IndexedSlices):
        return one + other
    # Both passes touched the same rows, and list them in the same order.
    total = tf.IndexedSlices(one.values + other.values, one.indices, one.dense_shape)
    total.rows_are_unique = True
    return total
