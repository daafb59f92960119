"""AdaLoRA: low-rank deltas whose ranks are allocated by importance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._typing import Layers
from keras_efficient.peft._canonical_paths import seeds_of
from keras_efficient.peft._low_rank import LowRankDelta, check_alpha, check_rank, compute_factored
from keras_efficient.peft._report import TuningReport, freeze_base
from keras_efficient.training import _replicas as replicas
from keras_efficient.training._transform_updates import update_transforms

#: Decay of the moving averages of sensitivity and of its uncertainty: β₁ and β₂ of the paper.
_DECAY = 0.85
_FACTORS = ("p", "lambda", "q")


class AdaLoRADelta(LowRankDelta):
    """W becomes W + (alpha / rank) · P · diag(λ) · Q, as a matrix [inputs, outputs].

    Args:
        updater: the `RankAllocator` of all weights.
        alpha: scale of the delta times the final rank.
        orthogonality: factor of the penalty ‖PᵀP - I‖² + ‖QQᵀ - I‖².
        seed: int or tuple of ints that seeds P and Q. Default: 0.

    Attributes:
        p: float32 `tf.Variable` [inputs, initial rank], initially with orthonormal columns.
        lambda_: float32 `tf.Variable` [initial rank], initially zero, so that W is unchanged.
        q: float32 `tf.Variable` [initial rank, outputs], initially with orthonormal rows.
        mask: uint8 `tf.Variable` [initial rank], 1 for triplets that are kept.
        active: whether the delta is added.
        rank: number of triplets that are kept now.
    """

    name = method = "adalora"
    saved_variables = (*_FACTORS, "mask")

    def __init__(
        self,
        updater: "RankAllocator",
        alpha: float,
        orthogonality: float,
        seed: int | tuple[int, ...] = 0,
    ):
        self.updater, self.alpha, self.seed = updater, alpha, seed
        self.orthogonality = orthogonality

    def build(self) -> None:
        inputs, outputs = self.matrix_form.matrix_shape
        rank, random = self.updater.initial_rank, self.random()
        p, q = (np.linalg.qr(random.normal(size=(n, rank)))[0] for n in (inputs, outputs))
        self.p = self.variable(
            "p",
            (inputs, rank),
            p.astype("float32"),
            trainable=True,
            regularizer=self._regularizer(of_columns=True),
        )
        self.lambda_ = self.variable("lambda", (rank,), 0.0, trainable=True)
        self.q = self.variable(
            "q",
            (rank, outputs),
            q.T.astype("float32"),
            trainable=True,
            regularizer=self._regularizer(of_columns=False),
        )
        self.mask = self.variable("mask", (rank,), 1, dtype="uint8")
        factors = zip(_FACTORS, (self.p, self.lambda_, self.q), strict=True)
        self.trackers = [_SensitivityTracker(self, name, factor) for name, factor in factors]

    def _regularizer(self, of_columns):
        if not self.orthogonality:
            return None

        def penalty(factor):
            # The penalty must not train an adapter that is switched off.
            if not self.active:
                return tf.constant(0.0)
            factor = tf.convert_to_tensor(factor)
            gram = tf.matmul(factor, factor, transpose_a=of_columns, transpose_b=not of_columns)
            size: Any = gram.shape[0]
            return self.orthogonality * tf.reduce_sum(tf.square(gram - tf.eye(size)))

        return penalty

    def factors(self):
        return self.p, (self.lambda_ * (self.alpha / self.updater.rank))[:, None] * self.q

    def importance(self) -> tf.Tensor:
        """Return the importance of each triplet for the loss, [initial rank]."""
        p, middle, q = (tracker.sensitivity() for tracker in self.trackers)
        return middle + tf.reduce_mean(p, 0) + tf.reduce_mean(q, 1)

    def apply_mask(self) -> None:
        """Set the λ of triplets that are not kept to zero."""
        middle = replicas.local(self.lambda_)
        kept = tf.cast(replicas.local(self.mask).read_value(), middle.dtype)
        middle.assign(middle.read_value() * kept)

    @property
    def rank(self) -> int:
        """Number of triplets that are kept now."""
        return int(np.sum(self.mask.numpy()))

    def settings(self) -> dict[str, Any]:
        updater = self.updater
        return {
            "rank": updater.rank,
            "initial_rank": updater.initial_rank,
            "begin_step": updater.begin_step,
            "end_step": updater.end_step,
            "alpha": self.alpha,
            "orthogonality": self.orthogonality,
        }

    def describe(self) -> str:
        off = "" if self.active else " (off)"
        return f"adalora r={self.rank} of {self.updater.initial_rank}{off}"


class _SensitivityTracker:
    """Moving averages of a factor's sensitivity |w · dL/dw| and of its uncertainty."""

    def __init__(self, delta, name, factor):
        self.factor, shape = factor, factor.shape
        self.mean = delta.variable(f"{name}_sensitivity", shape, 0.0)
        self.uncertainty = delta.variable(f"{name}_uncertainty", shape, 0.0)

    def update(self, gradient, finite):
        """Take in the gradient of an update, unless the update is skipped."""
        mean, uncertainty = replicas.local(self.mean), replicas.local(self.uncertainty)
        current = tf.abs(replicas.local(self.factor).read_value() * gradient)
        old_mean, old_uncertainty = mean.read_value(), uncertainty.read_value()
        new_mean = _DECAY * old_mean + (1 - _DECAY) * current
        mean.assign(tf.where(finite, new_mean, old_mean))
        new_uncertainty = _DECAY * old_uncertainty + (1 - _DECAY) * tf.abs(current - new_mean)
        uncertainty.assign(tf.where(finite, new_uncertainty, old_uncertainty))

    def sensitivity(self):
        return (
            replicas.local(self.mean).read_value() * replicas.local(self.uncertainty).read_value()
        )


class RankAllocator:
    """Keeps the total rank of the weights of one `ke.adalora` within a shrinking budget.

    Args:
        rank: final rank per weight on average.
        initial_rank: rank of each weight at first.
        begin_step: update from which on the budget shrinks.
        end_step: update at which the final rank is reached.

    Attributes:
        deltas: list of the `AdaLoRADelta`s.
        updates: int64 `tf.Variable`, number of updates so far.
    """

    updates: Any

    def __init__(self, rank: int, initial_rank: int, begin_step: int, end_step: int):
        self.rank, self.initial_rank = rank, initial_rank
        self.begin_step, self.end_step = begin_step, end_step
        # Between two allocations, λ that were set to zero may become nonzero again.
        self.interval = max(1, min(100, (end_step - begin_step) // 50))
        self.deltas: list[AdaLoRADelta] = []

    def build(self, model: Model) -> None:
        """Do nothing: all variables are those of the deltas."""

    def begin(self, deltas: Sequence[AdaLoRADelta]) -> None:
        """Set the attached deltas, and create the counter of updates with the first of them."""
        self.deltas = list(deltas)
        self.updates = self.deltas[0].variable("updates", (), 0, dtype="int64")

    @property
    def active(self) -> bool:
        """Whether any delta is added."""
        return any(delta.active for delta in self.deltas)

    def watch(self, gradients: Any) -> None:
        """Update the sensitivities with the gradients of an update."""
        if not self.active:
            return
        value = self.deltas[0].weight.flavor.value
        found = {
            id(value(variable)): gradient
            for variable, gradient in zip(gradients.variables, gradients.values, strict=True)
        }
        # A loss scale skips updates that overflow.
        finite = tf.reduce_all([_is_finite(gradient) for gradient in gradients.values])
        for tracker in (tracker for delta in self.deltas for tracker in delta.trackers):
            if (gradient := found.get(id(tracker.factor))) is not None:
                tracker.update(tf.convert_to_tensor(gradient), finite)

    def after_update(self) -> None:
        """Count the update, and when it is due choose which triplets to keep."""
        if not self.active:
            return
        updates = replicas.local(self.updates)
        updates.assign_add(1)
        now = updates.read_value()
        shrinking = (now > self.begin_step) & (now < self.end_step)
        due = shrinking & tf.equal((now - self.begin_step) % self.interval, 0)
        due |= tf.equal(now, self.end_step)
        tf.cond(due, self._allocate, lambda: False)
        # After `end_step` the ranks are final, but an optimizer's momentum would still move λ.
        tf.cond(due | (now >= self.end_step), self._apply_masks, lambda: False)

    def budget(self, step: Any) -> tf.Tensor:
        """Return the number of triplets of all weights together at an update, int32."""
        first, last = (r * len(self.deltas) for r in (self.initial_rank, self.rank))
        left = (self.end_step - tf.cast(step, tf.float32)) / (self.end_step - self.begin_step)
        left = tf.clip_by_value(left, 0.0, 1.0)
        return tf.cast(tf.round(last + (first - last) * left**3), tf.int32)

    def _allocate(self):
        """Keep the most important triplets of all weights."""
        scores = tf.stack([delta.importance() for delta in self.deltas], axis=1)
        # Sorted triplet by triplet, so that ties are spread over the weights.
        order = tf.math.top_k(tf.reshape(scores, [-1]), scores.shape.num_elements()).indices
        places = tf.range(scores.shape.num_elements())
        kept = tf.cast(places < self.budget(replicas.local(self.updates).read_value()), tf.uint8)
        kept = tf.reshape(tf.scatter_nd(order[:, None], kept, places.shape), scores.shape)
        for delta, mask in zip(self.deltas, tf.unstack(kept, axis=1), strict=True):
            replicas.local(delta.mask).assign(mask)
        return True

    def _apply_masks(self):
        for delta in self.deltas:
            delta.apply_mask()
        return True


def _is_finite(gradient):
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return tf.reduce_all(tf.math.is_finite(values))


@dataclass(frozen=True)
class AdaLoRAReport(TuningReport):
    """Result of `adalora`: a `TuningReport` with the ranks of the weights.

    Attributes:
        method: "adalora".
        weights: tuple of the paths of the weights with a delta.
        trainable: number of trainable parameters, those of the head included.
        parameters: number of parameters of the model before.
        trainable_fraction: `trainable / parameters`.
        allocator: the `RankAllocator` with the settings and the counter of updates.
        ranks: dict of a weight's path to the rank that its delta has now.
    """

    allocator: RankAllocator = field(repr=False, kw_only=True)

    @property
    def ranks(self) -> dict[str, int]:
        """Dict of a weight's path to the rank that its delta has now."""
        return {delta.weight.path: delta.rank for delta in self.allocator.deltas}

    def __str__(self):
        allocator = self.allocator
        return (
            f"{super().__str__()}; rank {allocator.initial_rank} each to {allocator.rank} on "
            f"average, from update {allocator.begin_step} to {allocator.end_step}"
        )


def adalora(
    model: Model,
    rank: int = 8,
    *,
    end_step: int,
    begin_step: int | None = None,
    initial_rank: int | None = None,
    alpha: float | None = None,
    orthogonality: float = 0.5,
    layers: Layers = None,
    train: str | bool | None = None,
    seed: int = 0,
) -> AdaLoRAReport:
    """Freeze a model and train low-rank deltas whose ranks are allocated by importance.

        W ← W + (alpha / rank) · P · diag(λ) · Q

    A triplet consists of one λ, a column of P and a row of Q. The sensitivity of a number w is the
    product of two moving averages with β = 0.85: of |w · dL/dw|, and of its distance from that
    average. The importance of a triplet is the sensitivity of λ plus the mean sensitivities of the
    column and of the row.

    The budget of triplets in all weights together falls from `initial_rank` to `rank` per weight
    with the cube of the remaining time. 50 times, and at least every 100 updates, the λ of all but
    the most important triplets are set to zero; from `end_step` on they stay zero. The penalty
    orthogonality · Σ(‖PᵀP - I‖² + ‖QQᵀ - I‖²) is added to the loss.

    Takes effect in the next `fit`; call it before or after `compile`. k microbatches are one
    update. `ke.merge(model)` folds the deltas into the weights, and `ke.save_adapters` saves only
    them.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        rank: final rank per weight on average, at least 1. Default: 8.
        end_step: the update, at least 1, at which the budget is reached. Train for some updates
            after it.
        begin_step: the update, at least 0, from which on the budget falls. Default: a tenth of
            `end_step`.
        initial_rank: rank of each weight at first, from `rank` to the smaller side of the weights.
            Default: `1.5 * rank`, or the smaller side.
        alpha: scale of the delta times `rank`, above 0. Default: `2 * rank`.
        orthogonality: factor of the penalty, at least 0. Default: 0.5.
        layers: which weights get a delta, as in `ke.parametrize.select`. Default: all kernels
            except the model's heads, the projection of an image's patches and layers with
            `trainable=False`.
        train: which other weights train. A regular expression is searched in their paths; False
            means none. Default: None, the model's heads: the last layer with a kernel before
            each output.
        seed: seed of the initial values of P and Q. Default: 0.

    Returns:
        An `AdaLoRAReport`, to print. Its `ranks` are those that the weights have now.

    Raises:
        TypeError: `model` is not a Keras model, or `layers` or `train` has another type.
        ValueError: an argument is out of range, no weight is selected, a weight has such a delta, a
            chosen layer has `trainable=False` or Keras' own LoRA, or another strategy's scope is
            entered.

    Examples:
        >>> report = ke.adalora(model, rank=2, end_step=100)
        >>> max(report.ranks.values()) <= 3
        True

    Reference:
        Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient
        Fine-Tuning". Here P and Q start orthonormal, not as small random numbers.
    """
    weights = select(
        model, layers, caller="ke.adalora", head=False, transform=AdaLoRADelta.name, trains=True
    )
    check_rank(rank, weights)
    if initial_rank is None:
        smallest = min(min(weight.matrix_shape) for weight in weights)
        initial_rank = min(math.ceil(1.5 * rank), smallest)
    check_rank(initial_rank, weights, "initial_rank")
    if initial_rank < rank:
        raise ValueError(
            "`initial_rank` must be at least `rank`, since the budget falls. Received: "
            f"initial_rank={initial_rank} and rank={rank}."
        )
    if begin_step is None:
        begin_step = end_step // 10 if isinstance(end_step, int) else 0
    check_settings(begin_step, end_step, orthogonality)
    alpha = 2 * rank if alpha is None else alpha
    check_alpha(alpha)
    allocator = RankAllocator(rank, initial_rank, begin_step, end_step)
    seeds = seeds_of(model, weights, seed)
    deltas = [AdaLoRADelta(allocator, alpha, orthogonality, weight_seed) for weight_seed in seeds]
    freeze_base(model, train)
    attach_adalora(model, list(zip(weights, deltas, strict=True)), allocator)
    report = TuningReport.of(model, "adalora", [weight.path for weight in weights])
    return AdaLoRAReport(**vars(report), allocator=allocator)


def attach_adalora(
    model: Model, pairs: Sequence[tuple[Weight, AdaLoRADelta]], allocator: RankAllocator
) -> None:
    """Attach the deltas of one allocator, and make the training step update them."""
    attach(model, pairs)
    with model.distribute_strategy.scope():
        allocator.begin([delta for _, delta in pairs])
    compute_factored(model, [weight for weight, _ in pairs])
    update_transforms(model)


def check_settings(begin_step, end_step, orthogonality):
    """Require steps in order, and a penalty that is not negative."""
    steps = (begin_step, end_step)
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if not whole or not 0 <= begin_step < end_step < 2**62:
        raise ValueError(
            "`begin_step` and `end_step` must be ints, counted in updates, with 0 <= begin_step < "
            f"end_step. Received: begin_step={begin_step!r}, end_step={end_step!r}."
        )
    number = isinstance(orthogonality, int | float) and not isinstance(orthogonality, bool)
    if not number or not 0 <= orthogonality < 1e30:
        raise ValueError(f"`orthogonality` must be at least 0. Received: {orthogonality!r}.")
