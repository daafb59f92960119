"""Ties: layers that read another layer's variable in place of their own."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._weights import Weight
from keras_efficient.parametrize._merge import TIES
from keras_efficient.parametrize._parametrized_layer import transform_chain

_TIE = "_keras_efficient_transposed"
_numbers = itertools.count()


class ReleasedVariable:
    """A variable that was replaced by another one, and that all its layers get back together.

    Args:
        create: function of an array that returns a new variable like the released one.
    """

    def __init__(self, create: Callable):
        self.create, self.variable = create, None

    def restore(self, value: np.ndarray) -> Any:
        """Return a new variable with this value, the same one for all layers."""
        if self.variable is None:
            self.variable = self.create(value)
        return self.variable


class Tie:
    """The replacement of one variable of a layer by that of another weight.

    Args:
        source: the `Weight` whose variable the layer reads.
        weight: the `Weight` that was the layer's own.
        layer: an owner of `weight`.
        attribute: its attribute that holds the variable.
        released: dict of the id of a variable to its `ReleasedVariable`, shared by all ties of one
            `ke.share_weights`.

    Attributes:
        path: path of the weight that was the layer's own.
        number: position of the tie in the order of all ties.
    """

    def __init__(
        self,
        source: Weight,
        weight: Weight,
        layer: Any,
        attribute: str,
        released: dict[int, ReleasedVariable],
    ):
        self.source, self.layer, self.attribute, self.path = source, layer, attribute, weight.path
        self.flavor, self.number = weight.flavor, next(_numbers)
        self.place = self.flavor.detach_variable(layer, weight.variable)
        variable = ReleasedVariable(self.place.make)
        self.released = released.setdefault(id(weight.variable), variable)
        self.tie()
        vars(layer).setdefault(TIES, []).append(self)

    def tie(self) -> None:
        """Make the layer read the source."""
        self.flavor.attach_variable(self.layer, self.place, self.source.variable)

    def undo(self) -> None:
        """Give the layer its own variable again, with its present value."""
        # This need not be the source's variable, which a later tie may have replaced.
        variable = vars(self.layer)[self.place.name]
        self.flavor.detach_variable(self.layer, variable)
        self.separate(self.flavor.value(variable).numpy())

    def separate(self, value: np.ndarray) -> None:
        """Attach the layer's own variable with this value, and remove the tie."""
        self.flavor.attach_variable(self.layer, self.place, self.released.restore(value))
        vars(self.layer)[TIES].remove(self)
        if not vars(self.layer)[TIES]:
            del vars(self.layer)[TIES]

    def describe(self):
        return f"its own again, was that of {self.source.path}"


class TransposedTie(Tie):
    """The replacement of a matrix by the transpose of another weight.

    The layer's class is replaced by a subclass of the same name in which the attribute is a
    property. The layer owns no variable in its place, but files contain the matrix where a plain
    model expects it.
    """

    def tie(self) -> None:
        layer = self.layer
        self.plain_class, self.others = type(layer), self.flavor.own_variables(layer)
        vars(layer)[_TIE] = self
        object.__setattr__(layer, "__class__", _tied(self.plain_class, self.attribute))

    def read(self) -> tf.Tensor:
        """Return the transpose of the source's value after its transforms."""
        chain = transform_chain(self.source)
        value = tf.convert_to_tensor(self.source.value) if chain is None else chain.value()
        return tf.transpose(value)

    def undo(self) -> None:
        value = self.read().numpy()
        object.__setattr__(self.layer, "__class__", self.plain_class)
        del vars(self.layer)[_TIE]
        self.separate(value)

    def saved(self) -> list:
        """Return the layer's variables in the order of a plain layer, None for this matrix."""
        return [*self.others[: self.place.index], None, *self.others[self.place.index :]]

    def describe(self):
        return f"its own again, was {self.source.path} transposed"


@functools.cache
def _tied(plain, attribute):
    own = {
        attribute: property(_read),
        "save_own_variables": _save_own_variables,
        "load_own_variables": _load_own_variables,
    }
    # A clone of the layer is a plain layer.
    own["from_config"] = classmethod(lambda cls, config: plain.from_config(config))
    # Model files refer to a layer's class by its name.
    own |= {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(plain)(plain.__name__, (plain,), own)


def _read(layer):
    tie = vars(layer)[_TIE]
    return tie.flavor.autocast(tie.read())


def _save_own_variables(self, store):
    tie = vars(self)[_TIE]
    for index, variable in enumerate(tie.saved()):
        store[str(index)] = (tie.read() if variable is None else variable).numpy()


def _load_own_variables(self, store):
    # The matrix is loaded with its source.
    for index, variable in enumerate(vars(self)[_TIE].saved()):
        if variable is not None:
            variable.assign(store[str(index)])
