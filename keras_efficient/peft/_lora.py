"""LoRA: freeze weights and train a low-rank delta of each."""

import math
from dataclasses import replace
from typing import Any

from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._typing import Layers
from keras_efficient.peft._canonical_paths import seeds_of
from keras_efficient.peft._low_rank import LowRankDelta, check_alpha, check_rank, compute_factored
from keras_efficient.peft._report import TuningReport, freeze_base

#: Names that other transforms and entries of weights files have.
_RESERVED = ("adalora", "cluster", "mask", "quantize", "base", "factored")


class LoRADelta(LowRankDelta):
    """The transform of LoRA: W becomes W + (alpha / rank) · A · B, as a matrix [inputs, outputs].

    `ke.lora` creates and attaches these.

    Args:
        rank: rank of the delta, at least 1.
        alpha: scale of the delta times the rank.
        seed: int or tuple of ints that seeds A. Default: 0.
        name: name of the adapter. Default: "lora".
        by_last_axis: whether the columns of the matrix are the weight's last axis and the rows all
            others, as in Keras' own LoRA; a kernel of three axes then is a matrix per head.
            Default: False, the rows are the axes that a product sums over.

    Attributes:
        a: float32 `tf.Variable` [inputs, rank], initially uniform in ±1 / √inputs.
        b: float32 `tf.Variable` [rank, outputs], initially zero, so that W is unchanged.
        active: whether the delta is added.

    Examples:
        >>> weights = ke.parametrize.select(model, caller="example", head=False, transform="lora")
        >>> delta = ke.peft.LoRADelta(rank=2, alpha=4)
        >>> ke.parametrize.attach(model, [(weights[0], delta)])
        >>> delta.describe()
        'lora r=2'

    Reference:
        Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
    """

    method, saved_variables = "lora", ("a", "b")

    def __init__(
        self,
        rank: int,
        alpha: float,
        seed: int | tuple[int, ...] = 0,
        name: str = "lora",
        by_last_axis: bool = False,
    ):
        self.rank, self.alpha, self.seed, self.name = rank, alpha, seed, name
        self.by_last_axis = by_last_axis

    def matrix_form_of(self, weight: Weight) -> Weight:
        axes = tuple(range(len(weight.shape) - 1))
        return replace(weight, inputs=axes) if self.by_last_axis else weight

    def build(self) -> None:
        inputs, outputs = self.matrix_form.matrix_shape
        bound = 1 / math.sqrt(inputs)
        initial = self.random().uniform(-bound, bound, (inputs, self.rank)).astype("float32")
        self.a = self.variable("a", (inputs, self.rank), initial, trainable=True)
        self.b = self.variable("b", (self.rank, outputs), 0.0, trainable=True)

    def factors(self):
        return self.a, self.b * (self.alpha / self.rank)

    def settings(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha, "by_last_axis": self.by_last_axis}

    def describe(self) -> str:
        return f"{self.name} r={self.rank}{'' if self.active else ' (off)'}"


def lora(
    model: Model,
    rank: int = 8,
    alpha: float | None = None,
    *,
    layers: Layers = None,
    train: str | bool | None = None,
    name: str = "lora",
    seed: int = 0,
) -> TuningReport:
    """Freeze a model and train low-rank deltas of its kernels.

        W ← W + (alpha / rank) · A · B

    B starts at zero, so at first the model's outputs do not change. Takes effect in the next `fit`;
    call it before or after `compile`. `ke.merge(model)` folds the deltas into the weights, and
    `ke.save_adapters` saves only them.

    A model may have several adapters, each with a `name`. All are added up and train until
    `ke.switch_adapters` chooses among them.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        rank: rank of the deltas, from 1 to the smaller side of the weights. Default: 8.
        alpha: scale of the delta times the rank, above 0. Default: `2 * rank`.
        layers: which weights get a delta, as in `ke.parametrize.select`. Default: all kernels
            except the model's heads, the projection of an image's patches and layers with
            `trainable=False`.
        train: which other weights train. A regular expression is searched in their paths; False
            means none. Default: None, the model's heads: the last layer with a kernel before
            each output.
        name: name of the adapter, an identifier. Default: "lora".
        seed: seed of A's initial values. Default: 0.

    Returns:
        A `TuningReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model, or `layers` or `train` has another type.
        ValueError: an argument is out of range, no weight is selected, a weight has an adapter of
            this name, a chosen layer has `trainable=False` or Keras' own LoRA, or another
            strategy's scope is entered.

    Examples:
        >>> print(ke.lora(model, rank=2))  # doctest: +ELLIPSIS
        lora: ...

    Reference:
        Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Keras 3's own
        `enable_lora` leaves biases and norms trainable.
    """
    check_name(name)
    weights = select(model, layers, caller="ke.lora", head=False, transform=name, trains=True)
    check_rank(rank, weights)
    alpha = 2 * rank if alpha is None else alpha
    check_alpha(alpha)
    seeds = seeds_of(model, weights, seed)
    deltas = [LoRADelta(rank, alpha, weight_seed, name) for weight_seed in seeds]
    freeze_base(model, train)
    attach(model, zip(weights, deltas, strict=True))
    compute_factored(model, weights)
    return TuningReport.of(model, name, [weight.path for weight in weights])


def check_name(name: Any) -> None:
    """Require an identifier that is not the name of another transform."""
    if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
        raise ValueError(
            "`name` must be a word of letters, digits and underscores, and no other transform's "
            f"({', '.join(_RESERVED)}). Received: {name!r}. Take one such as 'french'."
        )
