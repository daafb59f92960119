"""The base class of weight transforms."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

#: The places of transforms in a chain, in their order.
LOW_RANK, CLUSTER, MASK, QUANTIZE = 1, 2, 3, 4


class Transform:
    """A function of a weight's value through which a layer reads the weight.

    A chain of transforms computes T_n(... T_1(W)), sorted by `place`. A subclass sets `name` and
    `place`, creates its variables in `build` and computes in `__call__`. Whatever has to be done
    after an update of the optimizer belongs to its `updater`.

    Attributes:
        name: name of the kind of transform; a weight has at most one of each.
        place: place in the chain, `LOW_RANK` (1) < `CLUSTER` (2) < `MASK` (3) < `QUANTIZE` (4).
        weight: the `Weight` it is attached to.
        parametrized: the `ParametrizedLayer` that holds its variables.
        updater: object whose `after_update()` is called in the graph after every update in every
            replica, and whose `build(model)` is called outside of the graph before that, or None.
            One updater may serve the transforms of many weights. Default: None.
        trains: whether it has trainable variables. Default: False.
        in_place: whether the weight itself already has the transformed value, like one that a mask
            was applied to. Default: False.
        bits: bits in which each element is stored, or None for those of the dtype. Default: None.
        extra_bytes: bytes stored besides the elements, such as scales or centroids. Default: 0.

    Examples:
        >>> class Scaled(ke.parametrize.Transform):
        ...     name, place, trains = "scaled", 1, True
        ...
        ...     def build(self):
        ...         self.scale = self.variable("scale", (), 1.0, trainable=True)
        ...
        ...     def __call__(self, value):
        ...         return value * self.scale
        >>> weights = ke.parametrize.select(model, caller="example", transform="scaled")
        >>> ke.parametrize.attach(model, [(weight, Scaled()) for weight in weights])
        >>> len(model.trainable_variables)
        3

    Reference:
        The modules of `torch.nn.utils.parametrize`.
    """

    name: str
    place: int
    updater: Any = None
    in_place = False
    trains = False
    bits: int | None = None
    extra_bytes: int = 0
    weight: Any
    parametrized: Any

    def attach(self, weight: Any, parametrized: Any) -> None:
        """Set the weight and create the variables; called once, in the strategy's scope.

        Args:
            weight: the `Weight`.
            parametrized: the `ParametrizedLayer` that holds the variables.
        """
        self.weight, self.parametrized = weight, parametrized
        self.build()

    def variable(self, name: str, shape: Sequence[int], initial: Any, **kwargs: Any) -> tf.Variable:
        """Create a variable of this transform.

        Args:
            name: name of the variable, unique in the transform.
            shape: shape of the variable.
            initial: array or number to start with.
            **kwargs: `trainable`, `dtype` and `regularizer`.

        Returns:
            The `tf.Variable`.
        """
        made = self.parametrized.add_variable(self, name, shape, initial, **kwargs)
        return self.weight.flavor.value(made)

    def build(self) -> None:
        """Create the variables with `self.variable`; `self.weight` is set."""

    def __call__(self, value: tf.Tensor) -> tf.Tensor:
        """Return the transformed value, of the same shape and dtype as `value`."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return a short text for the summary."""
        return self.name
