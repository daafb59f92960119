"""Low-rank deltas of weights, and layers that compute with their factors."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Model
from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._parametrized_layer import CallWrapper, parametrize_layer
from keras_efficient.parametrize._transform import LOW_RANK, Transform


class LowRankDelta(Transform):
    """W becomes W + L · R, with L [rows, rank] and R [rank, columns].

    Attributes:
        name: name of the adapter; a weight may have several.
        method: "lora" or "adalora".
        active: whether the delta is added.
        matrix_form: a `Weight` whose `matrix` is the matrix L · R belongs to.
        saved_variables: names of the variables that an adapter file holds.
    """

    place, active, trains = LOW_RANK, True, True
    method: str
    seed: Any
    matrix_form: Weight
    saved_variables: tuple[str, ...]

    def attach(self, weight: Weight, parametrized: Any) -> None:
        self.matrix_form = self.matrix_form_of(weight)
        super().attach(weight, parametrized)

    def matrix_form_of(self, weight: Weight) -> Weight:
        """Return the weight with the axes that make it the matrix of the delta."""
        return weight

    @property
    def is_factorable(self) -> bool:
        """Whether x · (L · R) can be computed as (x · L) · R."""
        return set(self.weight.inputs) <= set(self.matrix_form.inputs)

    def factors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return L and R."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the arguments that recreate the transform, for an adapter file."""
        raise NotImplementedError

    def random(self) -> np.random.Generator:
        """Return a generator seeded alike on every worker, whatever else the model has."""
        return np.random.default_rng(self.seed)

    def __call__(self, value: tf.Tensor) -> tf.Tensor:
        if not self.active:
            return value
        left, right = self.factors()
        return value + tf.cast(self.matrix_form.unmatrix(tf.matmul(left, right)), value.dtype)

    def product(self, inputs: tf.Tensor, equation: str | None) -> tf.Tensor:
        """Return (x · L) · R for a layer's inputs x.

        Args:
            inputs: inputs of the layer.
            equation: its einsum equation, or None for a product over the last axis.
        """
        left, right = (tf.cast(factor, inputs.dtype) for factor in self.factors())
        if equation is None:
            return tf.tensordot(tf.tensordot(inputs, left, 1), right, 1)
        sides = equation.replace(" ", "").split("->")
        (x, kernel), y = sides[0].split(","), sides[1]
        rank = next(c for c in "rRzZqQvV" if c not in equation)
        rows, columns = self.matrix_form.inputs, self.matrix_form.outputs
        ins, outs = ("".join(kernel[axis] for axis in axes) for axes in (rows, columns))
        middle = "".join(c for c in y if c not in outs) + rank
        shape = self.weight.shape
        left = tf.reshape(left, [*(shape[axis] for axis in rows), -1])
        right = tf.reshape(right, [-1, *(shape[axis] for axis in columns)])
        inner = tf.einsum(f"{x},{ins}{rank}->{middle}", inputs, left)
        return tf.einsum(f"{middle},{rank}{outs}->{y}", inner, right)


class FactoredProduct(CallWrapper):
    """Compute x · W + (x · L) · R instead of x · (W + L · R).

    The backward pass then needs no gradient of W, which saves about a third of a layer's work in
    training. It applies only while the weight has no transforms other than low-rank deltas.
    """

    name, droppable, exact = "factored", True, True

    def __init__(self, attribute: str):
        self.attribute = attribute

    def wrap_call(self, call, inputs, *args, **kwargs):
        chain = self.parametrized.chains.get(self.attribute)
        deltas = chain.transforms if chain is not None else []
        factorable = all(isinstance(t, LowRankDelta) and t.is_factorable for t in deltas)
        # The library multiplies ragged and sparse inputs in ways of its own.
        if not deltas or not factorable or not isinstance(inputs, tf.Tensor):
            return call(inputs, *args, **kwargs)
        layer = self.layer
        x = self.parametrized.flavor.autocast(inputs)
        added = [t.product(x, getattr(layer, "equation", None)) for t in deltas if t.active]
        with patched(chain, transforms=[]):
            if not added:
                return call(inputs, *args, **kwargs)
            if not hasattr(layer, "activation"):
                return call(inputs, *args, **kwargs) + tf.add_n(added)
            original = layer.activation

            def activation(product):
                product = product + tf.add_n(added)
                return product if original is None else original(product)

            with patched(layer, activation=activation):
                return call(inputs, *args, **kwargs)

    def describe(self) -> str:
        return "deltas by their factors"


def compute_factored(model: Model, weights: Iterable[Weight]) -> None:
    """Attach a `FactoredProduct` to the layers of these weights that allow it."""
    with model.distribute_strategy.scope():
        for weight in weights:
            if len(weight.owners) > 1 or not _is_product(weight):
                continue
            parametrized = parametrize_layer(weight.layer, weight.flavor)
            if not any(isinstance(w, FactoredProduct) for w in parametrized.call_wrappers):
                parametrized.attach(FactoredProduct(weight.attribute))


def _is_product(weight):
    """Whether the layer is known to compute activation(x · kernel + bias) and nothing else.

    Embeddings and convolutions do not, and subclasses may compute anything.
    """
    layers, cls = weight.flavor.keras.layers, original_class(weight.layer)
    if cls.__name__ == "TFConv1D" and cls.__module__.startswith("transformers."):
        return True
    return cls.call in (layers.Dense.call, layers.EinsumDense.call)


def check_rank(rank: Any, weights: Sequence[Weight], name: str = "rank") -> None:
    """Require an int from 1 to the smaller side of every weight."""
    largest = min(min(weight.matrix_shape) for weight in weights)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise ValueError(
            f"`{name}` must be an int from 1 to the smaller side of every chosen weight, here "
            f"{largest}. Received: {rank!r}."
        )


def check_alpha(alpha: Any) -> None:
    """Require a positive number."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e30:
        raise ValueError(f"`alpha` must be a number above 0. Received: {alpha!r}.")
