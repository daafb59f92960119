"""Record the gradients that a model's own `train_step` applies."""

import functools
from collections.abc import Callable, Sequence
from typing import Any


class GradientRecorder:
    """Stand-in for an optimizer's update methods that keeps the gradients of one `train_step`.

    Args:
        flavor: The model's flavor.
        model: The compiled model.
        weight: Scalar, multiplies the loss or the gradients; or a function that returns it, called
            once the step has computed its loss.
        terms: Function of the loss that returns it with terms added. Default: None.
        others: Further variables, on which these terms depend. Default: none.

    Attributes:
        gradients: List of gradients, times `weight` and the loss scale.
        variables: List of the variables they belong to.
        loss: Scalar tensor, the loss times `weight`; None if the step did not pass it on.
        weight: Scalar.
    """

    def __init__(
        self,
        flavor: Any,
        model: Any,
        weight: Any,
        terms: Callable[[Any], Any] | None = None,
        others: Sequence = (),
    ):
        self.flavor, self.model, self._weight, self.terms = flavor, model, weight, terms
        self.others = others
        self.gradients: list | None = None
        self.variables: list | None = None
        self.loss = None

    @functools.cached_property
    def weight(self) -> Any:
        return self._weight() if callable(self._weight) else self._weight

    def minimize(self, loss: Any, var_list: Any, tape: Any = None, **kwargs: Any) -> None:
        """Record the gradients of `loss`."""
        import tensorflow as tf

        if tape is None:
            tape = tf.GradientTape()
        with tape:
            loss = loss() if callable(loss) else loss
            if self.terms is not None:
                loss = self.terms(loss)
            # Cheaper than multiplying every gradient.
            self.loss = loss = loss * tf.cast(self.weight, loss.dtype)
            loss = self.flavor.scale_loss(self.model, loss)
        variables: Any = var_list() if callable(var_list) else var_list
        variables = [*variables, *self.others]
        self._record(tape.gradient(loss, list(map(self.flavor.value, variables))), variables)

    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> None:
        """Record pairs of a gradient and a variable."""
        pairs = list(grads_and_vars)
        self.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Record gradients, by default those of all trainable variables."""
        import tensorflow as tf

        if self.terms is not None:
            raise NotImplementedError(
                "R-Drop and ke.distill add terms to the loss, so they need a `train_step` that "
                "gives its loss to `optimizer.minimize(loss, variables, tape=tape)`. Received one "
                "that applies gradients. Use Keras' own `train_step`, or `minimize`."
            )
        if trainable_variables is None:
            trainable_variables = self.model.trainable_variables
        factor = self.weight
        if not self.flavor.applies_scaled_gradients:
            factor = self.flavor.scale_loss(self.model, tf.cast(factor, tf.float32))
        self._record(
            [
                g if g is None or self.flavor.overwrites(v) else tf.math.scalar_mul(factor, g)
                for g, v in zip(grads, trainable_variables, strict=True)
            ],
            trainable_variables,
        )

    def _record(self, gradients, variables):
        if self.gradients is not None:
            raise NotImplementedError(
                "Accumulation needs a `train_step` that applies its gradients once per call. "
                "This model's `train_step` applied them twice. Give each optimizer its own step."
            )
        self.gradients, self.variables = list(gradients), list(variables)
