"""What LoRA and AdaLoRA share: a low-rank delta of a weight, and layers that compute with it."""

import numpy as np
import tensorflow as tf

from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._parametrized_layer import (
    CallWrapper,
    original_class,
    parametrize_layer,
)
from keras_efficient.parametrize._transform import LOW_RANK, Transform


class LowRankDelta(Transform):
    """See a weight W as W + L · R, with L [rows, rank] and R [rank, columns].

    Attributes:
        name: str, of the adapter; a weight may have several.
        method: str, the verb's name.
        active: bool, whether the delta is added.
        form: the `Weight` as the matrix that the delta is of: [inputs, outputs] as a rule.
        kept: tuple of the names of the variables that a file of adapters holds.
    """

    place, active, trains = LOW_RANK, True, True
    method: str
    kept: tuple

    def attach(self, weight, view):
        self.form = self.form_of(weight)
        super().attach(weight, view)

    def form_of(self, weight):
        """The weight as the matrix that the delta is of."""
        return weight

    @property
    def factorable(self):
        """Whether a product with activations can be taken factor by factor."""
        return set(self.weight.inputs) <= set(self.form.inputs)

    def factors(self):
        """`(L, R)`."""
        raise NotImplementedError

    def settings(self) -> dict:
        """The arguments that make such a transform again, as a file of adapters holds them."""
        raise NotImplementedError

    def random(self):
        """Numbers that are the same on every worker, and whatever else is attached."""
        return np.random.default_rng(self.seed)

    def __call__(self, value):
        if not self.active:
            return value
        left, right = self.factors()
        return value + tf.cast(self.form.unmatrix(tf.matmul(left, right)), value.dtype)

    def of(self, inputs, equation):
        """What the delta adds to the layer's product with `inputs`, without the delta itself."""
        left, right = (tf.cast(factor, inputs.dtype) for factor in self.factors())
        if equation is None:
            return tf.tensordot(tf.tensordot(inputs, left, 1), right, 1)
        sides = equation.replace(" ", "").split("->")
        (x, kernel), y = sides[0].split(","), sides[1]
        rank = next(c for c in "rRzZqQvV" if c not in equation)
        rows, columns = self.form.inputs, self.form.outputs
        ins, outs = ("".join(kernel[axis] for axis in axes) for axes in (rows, columns))
        middle = "".join(c for c in y if c not in outs) + rank
        shape = self.weight.shape
        left = tf.reshape(left, [*(shape[axis] for axis in rows), -1])
        right = tf.reshape(right, [-1, *(shape[axis] for axis in columns)])
        inner = tf.einsum(f"{x},{ins}{rank}->{middle}", inputs, left)
        return tf.einsum(f"{middle},{rank}{outs}->{y}", inner, right)


class Factored(CallWrapper):
    """Computes x·W + (x·L)·R in place of x·(W + L·R), where a weight has nothing but deltas.

    The product with W has no gradient by W then, which is a third of a layer's work in training.
    """

    name, droppable, exact = "factored", True, True

    def __init__(self, attribute):
        self.attribute = attribute

    def wrap_call(self, call, inputs, *args, **kwargs):
        chain = self.parametrized.chains.get(self.attribute)
        deltas = chain.transforms if chain is not None else []
        plain = all(isinstance(t, LowRankDelta) and t.factorable for t in deltas)
        # (Ragged and sparse inputs have products of their own.)
        if not deltas or not plain or not isinstance(inputs, tf.Tensor):
            return call(inputs, *args, **kwargs)
        layer = self.layer
        x = self.parametrized.flavor.autocast(inputs)
        added = [t.of(x, getattr(layer, "equation", None)) for t in deltas if t.active]
        with patched(chain, transforms=[]):
            if not added:
                return call(inputs, *args, **kwargs)
            if not hasattr(layer, "activation"):
                return call(inputs, *args, **kwargs) + tf.add_n(added)
            plain = layer.activation

            def activation(product):
                product = product + tf.add_n(added)
                return product if plain is None else plain(product)

            with patched(layer, activation=activation):
                return call(inputs, *args, **kwargs)

    def describe(self):
        return "deltas by their factors"


def compute_factored(model, weights):
    """Let the layers of these weights compute with the deltas' factors, where they can."""
    with model.distribute_strategy.scope():
        for weight in weights:
            if len(weight.owners) > 1 or not _is_product(weight):
                continue
            view = parametrize_layer(weight.layer, weight.flavor)
            if not any(isinstance(part, Factored) for part in view.call_wrappers):
                view.attach(Factored(weight.attribute))


def _is_product(weight):
    """Whether the layer is known to compute activation(x · kernel + bias), and nothing else.

    (A table's rows are looked up, a convolution slides, and a subclass may do anything.)
    """
    layers, cls = weight.flavor.keras.layers, original_class(weight.layer)
    if cls.__name__ == "TFConv1D" and cls.__module__.startswith("transformers."):
        return True
    return cls.call in (layers.Dense.call, layers.EinsumDense.call)


def check_rank(rank, weights, name="rank"):
    """Refuse a rank that a weight cannot have."""
    largest = min(min(weight.matrix_shape) for weight in weights)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise ValueError(
            f"`{name}` must be an int from 1 to the smaller side of every chosen weight, here "
            f"{largest}. Received: {rank!r}."
        )


def check_alpha(alpha):
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e30:
        raise ValueError(f"`alpha` must be a number above 0. Received: {alpha!r}.")
