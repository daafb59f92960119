"""A layer's variable that is another layer's, and how to part them again."""

import functools
import itertools

import tensorflow as tf

from keras_efficient.parametrize._merge import TIES
from keras_efficient.parametrize._parametrized_layer import transform_chain

_TIE = "_keras_efficient_transposed"
_numbers = itertools.count()


class ReleasedVariable:
    """A variable that layers gave up for another one: it is made anew, once for all of them.

    Args:
        make: function of an array that gives a new variable like it.
    """

    def __init__(self, make):
        self.make, self.twin = make, None

    def again(self, value):
        if self.twin is None:
            self.twin = self.make(value)
        return self.twin


class Tie:
    """One attribute of one layer, in whose place a source is read.

    Args:
        source: the `Weight` whose variable is read.
        weight: the `Weight` that was the layer's own.
        layer, attribute: one of its owners.
        path: str, of the weight before.
        taken: dict of the id of a variable to its `Taken`, of one `ke.share_weights`.
    """

    def __init__(self, source, weight, layer, attribute, taken):
        self.source, self.layer, self.attribute, self.path = source, layer, attribute, weight.path
        self.flavor, self.number = weight.flavor, next(_numbers)
        self.place = self.flavor.detach_variable(layer, weight.variable)
        self.taken = taken.setdefault(id(weight.variable), ReleasedVariable(self.place.make))
        self.tie()
        vars(layer).setdefault(TIES, []).append(self)

    def tie(self):
        self.flavor.attach_variable(self.layer, self.place, self.source.variable)

    def undo(self):
        """Give the layer a variable of its own, with the value that it sees now."""
        # (Not always the source's: that may have been another's meanwhile, and made anew.)
        variable = vars(self.layer)[self.place.name]
        self.flavor.detach_variable(self.layer, variable)
        self.part(self.flavor.value(variable).numpy())

    def part(self, value):
        self.flavor.attach_variable(self.layer, self.place, self.taken.again(value))
        vars(self.layer)[TIES].remove(self)
        if not vars(self.layer)[TIES]:
            del vars(self.layer)[TIES]

    def describe(self):
        return f"its own again, was that of {self.source.path}"


class TransposedTie(Tie):
    """A matrix that is read as the transpose of another layer's.

    The layer becomes an instance of a subclass of its class, of the same name, whose attribute is
    a property. It owns nothing in its place, but files get the matrix where a plain model looks.
    """

    def tie(self):
        layer = self.layer
        self.plain_class, self.others = type(layer), self.flavor.own_variables(layer)
        vars(layer)[_TIE] = self
        object.__setattr__(layer, "__class__", _tied(self.plain_class, self.attribute))

    def read(self):
        """The matrix, as the source is seen."""
        chain = transform_chain(self.source)
        value = tf.convert_to_tensor(self.source.value) if chain is None else chain.value()
        return tf.transpose(value)

    def undo(self):
        value = self.read().numpy()
        object.__setattr__(self.layer, "__class__", self.plain_class)
        del vars(self.layer)[_TIE]
        self.part(value)

    def saved(self):
        """The layer's variables as a plain one has them, None where this matrix is."""
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
    # A clone is a plain layer.
    own["from_config"] = classmethod(lambda cls, config: plain.from_config(config))
    # Libraries write a layer's class down by its name.
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
    # (The matrix comes with its source.)
    for index, variable in enumerate(vars(self)[_TIE].saved()):
        if variable is not None:
            variable.assign(store[str(index)])
