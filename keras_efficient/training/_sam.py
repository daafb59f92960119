"""Sharpness-aware minimisation, and the second pass over a batch that it shares with FGM."""

import re
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.training import _replicas as replicas, _train_step_hook as train_step_hook
from keras_efficient.training._microbatch_step import square_norm


def sam(model: Model, rho: float | None = 0.05) -> Model:
    """Train with sharpness-aware minimisation (SAM).

    Each update uses the gradient at the point within radius ρ where the loss is about largest:

        ε = ρ · g(θ) / ‖g(θ)‖        θ ← θ - update(g(θ + ε))

    `g` is the gradient of the whole batch, over all microbatches and replicas, so an update does
    not depend on how the batch is split. SAM costs a second forward and backward pass and a second
    all-reduce per update. Metrics are those of the first pass.

    Args:
        model: a Keras 3 or tf_keras model; before or after `compile`.
        rho: float > 0, ρ: radius of the neighbourhood, a Euclidean length in the space of all
            trainable weights; None removes SAM. Default: 0.05.

    Returns:
        The model.

    Raises:
        ValueError: if `rho` is not positive, or `ke.adversarial(model, "fgm")` is on: a step has
            at most one second pass.
        TypeError: if `model` is not a Keras model.

    Examples:
        >>> model = ke.sam(model, rho=0.05)
        >>> history = model.fit(dataset, verbose=0)

    Reference:
        Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization".
    """
    if rho is not None and not (isinstance(rho, int | float) and rho > 0):
        raise ValueError(
            f"`rho` must be a number > 0. Received: {rho!r}. ke.sam(model, None) removes SAM."
        )
    return set_second_pass(model, "sam", None if rho is None else SecondPass("sam", rho))


def set_second_pass(model: Model, owner: str, second_pass: "SecondPass | None") -> Model:
    """Give the model's training step a second pass, or remove the one of `owner`."""
    flavors.of(model)
    hook = train_step_hook.attach(model)
    present = hook.second_pass
    if second_pass is not None and present is not None and present.owner != owner:
        raise ValueError(
            f"A step has one second pass. Received: {owner!r} for a model with {present.owner!r}. "
            "Remove the other first: ke.sam(model, None) or ke.adversarial(model, None)."
        )
    if second_pass is not None or (present is not None and present.owner == owner):
        hook.second_pass = second_pass
    train_step_hook.detach_if_idle(model)
    return model


@dataclass(frozen=True)
class SecondPass:
    """A second gradient, taken after weights have moved along the batch's gradient.

    Attributes:
        owner: "sam", whose second gradient replaces the first; or "fgm", which adds them.
        radius: float, Euclidean length of the move.
        pattern: regular expression for the paths of the variables to move. Default: None, all.
    """

    owner: str
    radius: float
    pattern: str | None = None

    def move(self, variables, gradients, paths):
        """Move the chosen variables; return a function that restores them bit by bit."""
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
        """Return the gradients to apply."""
        if self.owner == "sam":
            return second
        return [_add(a, b) for a, b in zip(first, second, strict=True)]


def _add(one: Any, other: Any) -> Any:
    if not isinstance(one, tf.IndexedSlices):
        return one + other
    # Both passes touched the same rows and list them in the same order.
    total: Any = tf.IndexedSlices(one.values + other.values, one.indices, one.dense_shape)
    total.rows_are_unique = True
    return total
