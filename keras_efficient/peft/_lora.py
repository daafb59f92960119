"""LoRA: train a low-rank delta of each weight in place of the weight."""

import math
from dataclasses import replace

from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._select import select
from keras_efficient.peft._canonical_paths import seeds_of
from keras_efficient.peft._low_rank import LowRankDelta, check_alpha, check_rank, compute_factored
from keras_efficient.peft._report import TuningReport, freeze_base


class LoRADelta(LowRankDelta):
    """See a weight W as W + (alpha / rank) · A · B, in its matrix form [inputs, outputs].

    Args:
        seed: int or tuple of ints, of A's initial values.
        by_last_axis: whether B's columns are the weight's last axis, and A has all others, as in
            Keras' own LoRA. A rank-3 kernel is then a matrix for every head.

    Attributes:
        a: `tf.Variable` [inputs, rank], uniform in ±1 / sqrt(inputs) at first.
        b: `tf.Variable` [rank, outputs], zeros at first, so that W is seen as it is.
        active: bool, whether the delta is added.
    """

    method, kept = "lora", ("a", "b")

    def __init__(self, rank, alpha, seed=0, name="lora", by_last_axis=False):
        self.rank, self.alpha, self.seed, self.name = rank, alpha, seed, name
        self.by_last_axis = by_last_axis

    def form_of(self, weight):
        axes = tuple(range(len(weight.shape) - 1))
        return replace(weight, inputs=axes) if self.by_last_axis else weight

    def build(self):
        inputs, outputs = self.form.matrix_shape
        bound = 1 / math.sqrt(inputs)
        initial = self.random().uniform(-bound, bound, (inputs, self.rank)).astype("float32")
        self.a = self.variable("a", (inputs, self.rank), initial, trainable=True)
        self.b = self.variable("b", (self.rank, outputs), 0.0, trainable=True)

    def factors(self):
        return self.a, self.b * (self.alpha / self.rank)

    def settings(self):
        return {"rank": self.rank, "alpha": self.alpha, "by_last_axis": self.by_last_axis}

    def describe(self):
        off = "" if self.active else " (off)"
        return f"{self.name} r={self.rank}{off}"


def lora(
    model, rank=8, alpha=None, *, layers=None, train=None, name="lora", seed=0
) -> TuningReport:
    """Freeze a model and train low-rank deltas of its kernels: W + (alpha / rank) · A · B.

    Acts from the next `fit` on, before or after `compile`. At first the model computes what it did
    (B is zero). `ke.merge(model)` folds the deltas in; `ke.save_adapters` writes them alone.

    A model may hold several, each of a `name`: all are added and all train, the new one too, until
    `ke.switch_adapters` chooses among them.

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
        ValueError: the rank, alpha or name will not do, no such weights, deltas of this name exist,
            or a layer has Keras' own LoRA.

    Example:
        >>> print(ke.lora(model, rank=2))  # doctest: +ELLIPSIS
        lora: ...

    Reference:
        Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Keras 3's own
        `enable_lora` leaves biases and norms trainable (trap 32).
    """
    check_name(name)
    chosen = select(model, layers, caller="ke.lora", head=False, transform=name, trains=True)
    check_rank(rank, chosen)
    alpha = 2 * rank if alpha is None else alpha
    check_alpha(alpha)
    seeds = zip(chosen, seeds_of(model, chosen, seed), strict=True)
    pairs = [(weight, LoRADelta(rank, alpha, own, name)) for weight, own in seeds]
    freeze_base(model, train)
    attach(model, pairs)
    compute_factored(model, chosen)
    return TuningReport.of(model, name, [weight.path for weight in chosen])


#: Of other transforms.
_TAKEN = ("adalora", "cluster", "mask", "quantize", "base", "factored")


def check_name(name):
    """Refuse a name that variables cannot have, or that is another transform's."""
    if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN:
        raise ValueError(
            "`name` must be a word of letters, digits and underscores, and no other transform's "
            f"({', '.join(_TAKEN)}). Received: {name!r}. Take one such as 'french'."
        )
