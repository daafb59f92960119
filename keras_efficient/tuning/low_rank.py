"""LoRA: train a low-rank delta of each weight in place of the weight."""

import math
import zlib

import numpy as np
import tensorflow as tf

from keras_efficient.flavor.base import replaced
from keras_efficient.parametrize.attaching import attach, check_free
from keras_efficient.parametrize.merging import check_strategy
from keras_efficient.parametrize.transform import LOW_RANK, Transform
from keras_efficient.parametrize.view import Around, make_view
from keras_efficient.parametrize.weights import select, without_head
from keras_efficient.tuning.training import Tuned, freeze_base


class LowRank(Transform):
    """See a weight W as W + (alpha / rank) · A · B, in its matrix form [inputs, outputs].

    Attributes:
        a: `tf.Variable` [inputs, rank], uniform in ±1 / sqrt(inputs) at first.
        b: `tf.Variable` [rank, outputs], zeros at first, so that W is seen as it is.
        active: bool, whether the delta is added.
    """

    place = LOW_RANK

    def __init__(self, rank, alpha, seed, name="lora"):
        self.rank, self.alpha, self.seed, self.name, self.active = rank, alpha, seed, name, True

    def build(self):
        inputs, outputs = self.weight.matrix_shape
        # The same on every worker, and whatever else is attached.
        rng = np.random.default_rng([self.seed, zlib.crc32(self.weight.path.encode())])
        bound = 1 / math.sqrt(inputs)
        initial = rng.uniform(-bound, bound, (inputs, self.rank)).astype("float32")
        self.a = self.variable("a", (inputs, self.rank), initial, trainable=True)
        self.b = self.variable("b", (self.rank, outputs), 0.0, trainable=True)

    @property
    def scale(self):
        return self.alpha / self.rank

    def __call__(self, value):
        if not self.active:
            return value
        delta = self.scale * tf.matmul(self.a, self.b)
        return value + tf.cast(self.weight.unmatrix(delta), value.dtype)

    def of(self, inputs, equation):
        """What the delta adds to the layer's product with `inputs`, without the delta itself."""
        a, b = (tf.cast(v, inputs.dtype) for v in (self.a, self.b))
        if equation is None:
            return self.scale * tf.tensordot(tf.tensordot(inputs, a, 1), b, 1)
        sides = equation.replace(" ", "").split("->")
        (x, kernel), y = sides[0].split(","), sides[1]
        rank = next(c for c in "rRzZqQ" if c not in equation)
        ins = "".join(kernel[i] for i in self.weight.inputs)
        outs = "".join(kernel[i] for i in self.weight.outputs)
        middle = "".join(c for c in y if c not in kernel) + rank
        shape = self.weight.shape
        a = tf.reshape(a, [*(shape[i] for i in self.weight.inputs), self.rank])
        b = tf.reshape(b, [self.rank, *(shape[i] for i in self.weight.outputs)])
        inner = tf.einsum(f"{x},{ins}{rank}->{middle}", inputs, a)
        return self.scale * tf.einsum(f"{middle},{rank}{outs}->{y}", inner, b)

    def describe(self):
        off = "" if self.active else " (off)"
        return f"{self.name} r={self.rank}{off}"


class Factored(Around):
    """Computes x·W + (x·A)·B in place of x·(W + A·B), where a weight has nothing but deltas.

    The product with W has no gradient by W then, which is a third of a layer's work in training.
    """

    name, droppable = "lora", True

    def __init__(self, attribute):
        self.attribute = attribute

    def around(self, call, inputs, *args, **kwargs):
        chain = self.view.chains.get(self.attribute)
        deltas = chain.transforms if chain is not None else []
        if not deltas or not all(isinstance(t, LowRank) for t in deltas):
            return call(inputs, *args, **kwargs)
        equation = getattr(self.view.layer, "equation", None)
        x = self.view.flavor.autocast(inputs)
        added = [t.of(x, equation) for t in deltas if t.active]
        with replaced(chain, transforms=[]):
            if not added:
                return call(inputs, *args, **kwargs)
            layer = self.view.layer
            if not hasattr(layer, "activation"):
                return call(inputs, *args, **kwargs) + tf.add_n(added)
            plain = layer.activation

            def activation(product):
                product = product + tf.add_n(added)
                return product if plain is None else plain(product)

            with replaced(layer, activation=activation):
                return call(inputs, *args, **kwargs)


def lora(model, rank=8, alpha=None, *, layers=None, train=None, name="lora", seed=0) -> Tuned:
    """Freeze a model and train low-rank deltas of its kernels: W + (alpha / rank) · A · B.

    Acts from the next `fit` on, before or after `compile`. At first the model computes what it did
    (B is zero). `ke.merge(model)` folds the deltas in; `ke.save_adapters` writes them alone.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        rank: int >= 1, of the deltas; at most the smaller side of a weight. Default 8.
        alpha: float > 0, the delta's scale times the rank. Default: twice the rank.
        layers: which weights get a delta; see `parametrize.select`. Default: all kernels of Dense,
            EinsumDense and attention layers, without the model's last one (its head).
        train: what else trains: None (default) the model's head, its last layer with a kernel; a
            regular expression searched in the weights' paths; False: nothing.
        name: str, of these deltas, to hold several at once and to switch. Default "lora".
        seed: int, of A's initial values. Default 0.

    Returns:
        A `Tuned`, to print: what trains, and how much of all that is.

    Raises:
        ValueError: the rank or alpha will not do, no such weights, or deltas of this name exist.

    Example:
        >>> print(ke.lora(model, rank=2))  # doctest: +ELLIPSIS
        lora: ...

    Reference:
        Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Keras 3's own
        `enable_lora` leaves biases and norms trainable (trap 32).
    """
    chosen = select(model, layers, verb="ke.lora")
    if layers is None:
        chosen = without_head(chosen)
    largest = min(min(weight.matrix_shape) for weight in chosen)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise ValueError(
            "`rank` must be an int from 1 to the smaller side of every chosen weight, here "
            f"{largest}. Received: {rank!r}."
        )
    alpha = 2 * rank if alpha is None else alpha
    if not alpha > 0:
        raise ValueError(f"`alpha` must be above 0. Received: {alpha!r}.")
    pairs = [(weight, LowRank(rank, alpha, seed, name)) for weight in chosen]
    check_free(pairs)
    check_strategy(model, "ke.lora")
    freeze_base(model, train)
    attach(model, pairs)
    compute_factored(model, chosen)
    return Tuned.of(model, name, [weight.path for weight in chosen])


def compute_factored(model, weights):
    """Let the layers of these weights compute with the deltas' factors."""
    with model.distribute_strategy.scope():
        for weight in weights:
            # (A table's rows are looked up, not multiplied.)
            if weight.kind != "kernel" or len(weight.owners) > 1:
                continue
            view = make_view(weight.layer, weight.flavor)
            if not any(isinstance(part, Factored) for part in view.calls):
                view.attach(Factored(weight.attribute))
