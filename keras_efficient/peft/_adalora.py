"""AdaLoRA: low-rank deltas that share a budget of ranks, given to the weights that need it."""

import math
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._select import select
from keras_efficient.peft._canonical_paths import seeds_of
from keras_efficient.peft._low_rank import LowRankDelta, check_alpha, check_rank, compute_factored
from keras_efficient.peft._report import TuningReport, freeze_base
from keras_efficient.training import _replicas as replicas
from keras_efficient.training._transform_updates import update_transforms

#: How slowly sensitivity and its uncertainty are averaged: the paper's beta1 and beta2.
_SMOOTHING = 0.85
_FACTORS = ("p", "lambda", "q")


class AdaLoRADelta(LowRankDelta):
    """See a weight W as W + (alpha / rank) · P · diag(λ) · Q, in its matrix form [inputs, outputs].

    Attributes:
        p: `tf.Variable` [inputs, initial rank], orthonormal columns at first.
        lambda_: `tf.Variable` [initial rank], zeros at first, so that W is seen as it is.
        q: `tf.Variable` [initial rank, outputs], orthonormal rows at first.
        mask: uint8 `tf.Variable` [initial rank], which triplets are in the budget.
        active: bool, whether the delta is added.
    """

    name = method = "adalora"
    kept = (*_FACTORS, "mask")

    def __init__(self, updater, alpha, orthogonality, seed=0):
        self.updater, self.alpha, self.seed = updater, alpha, seed
        self.orthogonality = orthogonality

    def build(self):
        inputs, outputs = self.form.matrix_shape
        rank, random = self.updater.initial_rank, self.random()
        p, q = (np.linalg.qr(random.normal(size=(n, rank)))[0] for n in (inputs, outputs))
        made = {"trainable": True, "regularizer": self._regularizer(of_columns=True)}
        self.p = self.variable("p", (inputs, rank), p.astype("float32"), **made)
        self.lambda_ = self.variable("lambda", (rank,), 0.0, trainable=True)
        made["regularizer"] = self._regularizer(of_columns=False)
        self.q = self.variable("q", (rank, outputs), q.T.astype("float32"), **made)
        self.mask = self.variable("mask", (rank,), 1, dtype="uint8")
        factors = zip(_FACTORS, (self.p, self.lambda_, self.q), strict=True)
        self.tracks = [_Track(self, name, factor) for name, factor in factors]

    def _regularizer(self, of_columns):
        if not self.orthogonality:
            return None

        def penalty(factor):
            # (One that is switched off does not train.)
            if not self.active:
                return tf.constant(0.0)
            factor = tf.convert_to_tensor(factor)
            gram = tf.matmul(factor, factor, transpose_a=of_columns, transpose_b=not of_columns)
            return self.orthogonality * tf.reduce_sum(tf.square(gram - tf.eye(gram.shape[0])))

        return penalty

    def factors(self):
        return self.p, (self.lambda_ * (self.alpha / self.updater.rank))[:, None] * self.q

    def importance(self):
        """How much the loss would miss each triplet: [initial rank]."""
        p, middle, q = (track.sensitivity() for track in self.tracks)
        return middle + tf.reduce_mean(p, 0) + tf.reduce_mean(q, 1)

    def drop(self):
        """Let λ be zero out of the budget."""
        middle = replicas.local(self.lambda_)
        kept = tf.cast(replicas.local(self.mask).read_value(), middle.dtype)
        middle.assign(middle.read_value() * kept)

    @property
    def rank(self) -> int:
        """The rank it has now."""
        return int(np.sum(self.mask.numpy()))

    def settings(self):
        updater = self.updater
        return {
            "rank": updater.rank,
            "initial_rank": updater.initial_rank,
            "begin_step": updater.begin_step,
            "end_step": updater.end_step,
            "alpha": self.alpha,
            "orthogonality": self.orthogonality,
        }

    def describe(self):
        off = "" if self.active else " (off)"
        return f"adalora r={self.rank} of {self.updater.initial_rank}{off}"


class _Track:
    """The moving averages of a factor's sensitivity |w · dL/dw|, and of how far off they are."""

    def __init__(self, triplets, name, factor):
        self.factor, shape = factor, factor.shape
        self.mean = triplets.variable(f"{name}_sensitivity", shape, 0.0)
        self.spread = triplets.variable(f"{name}_uncertainty", shape, 0.0)

    def watch(self, gradient, good):
        """Take an update's gradient in, if the update is made."""
        mean, spread = replicas.local(self.mean), replicas.local(self.spread)
        now = tf.abs(replicas.local(self.factor).read_value() * gradient)
        old, far = mean.read_value(), spread.read_value()
        new = _SMOOTHING * old + (1 - _SMOOTHING) * now
        mean.assign(tf.where(good, new, old))
        farther = _SMOOTHING * far + (1 - _SMOOTHING) * tf.abs(now - new)
        spread.assign(tf.where(good, farther, far))

    def sensitivity(self):
        return replicas.local(self.mean).read_value() * replicas.local(self.spread).read_value()


class RankAllocator:
    """Keeps the ranks of all weights of one `ke.adalora` within a budget that falls.

    Args:
        rank: int, per weight on average in the end.
        initial_rank: int, of each weight at first.
        begin_step, end_step: int, the updates between which the budget falls.
    """

    def __init__(self, rank, initial_rank, begin_step, end_step):
        self.rank, self.initial_rank = rank, initial_rank
        self.begin_step, self.end_step = begin_step, end_step
        # Between two moves, λ that were set to zero may come back.
        self.every = max(1, min(100, (end_step - begin_step) // 50))
        self.triplets, self.updates = [], None

    def build(self, model):
        """(All variables are those of the triplets.)"""

    def begin(self, triplets):
        """Take the attached triplets, and make the counter of updates."""
        self.triplets = triplets
        # (With the variables of the first.)
        self.updates = triplets[0].variable("updates", (), 0, dtype="int64")

    @property
    def active(self):
        return any(triplets.active for triplets in self.triplets)

    def watch(self, gradients):
        if not self.active:
            return
        value = self.triplets[0].weight.flavor.value
        found = {
            id(value(variable)): gradient
            for variable, gradient in zip(gradients.variables, gradients.values, strict=True)
        }
        # An update that a loss scale let overflow is not made.
        good = tf.reduce_all([_is_finite(gradient) for gradient in gradients.values])
        for track in (track for triplets in self.triplets for track in triplets.tracks):
            if (gradient := found.get(id(track.factor))) is not None:
                track.watch(tf.convert_to_tensor(gradient), good)

    def after_update(self):
        if not self.active:
            return
        updates = replicas.local(self.updates)
        updates.assign_add(1)
        now = updates.read_value()
        falling = (now > self.begin_step) & (now < self.end_step)
        due = falling & tf.equal((now - self.begin_step) % self.every, 0)
        due |= tf.equal(now, self.end_step)
        tf.cond(due, self._choose, lambda: False)
        # In the end ranks stay, though an optimizer's momentum would move λ off zero.
        tf.cond(due | (now >= self.end_step), self._drop, lambda: False)

    def budget(self, step):
        """The triplets of all weights together at an update: an int32 tensor."""
        first, last = (r * len(self.triplets) for r in (self.initial_rank, self.rank))
        left = (self.end_step - tf.cast(step, tf.float32)) / (self.end_step - self.begin_step)
        left = tf.clip_by_value(left, 0.0, 1.0)
        return tf.cast(tf.round(last + (first - last) * left**3), tf.int32)

    def _choose(self):
        """Keep the most important triplets of all weights."""
        scores = tf.stack([triplets.importance() for triplets in self.triplets], axis=1)
        # Row by row: where all are equal, weights give way in turn.
        order = tf.math.top_k(tf.reshape(scores, [-1]), scores.shape.num_elements()).indices
        places = tf.range(scores.shape.num_elements())
        kept = tf.cast(places < self.budget(replicas.local(self.updates).read_value()), tf.uint8)
        kept = tf.reshape(tf.scatter_nd(order[:, None], kept, places.shape), scores.shape)
        for triplets, mask in zip(self.triplets, tf.unstack(kept, axis=1), strict=True):
            replicas.local(triplets.mask).assign(mask)
        return True

    def _drop(self):
        for triplets in self.triplets:
            triplets.drop()
        return True


def _is_finite(gradient):
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return tf.reduce_all(tf.math.is_finite(values))


@dataclass(frozen=True)
class AdaLoRAReport(TuningReport):
    """What `adalora` set: a `Tuned` that knows the ranks.

    Attributes:
        budget: `RankBudget`.
    """

    budget: RankAllocator = field(repr=False, default=None)

    @property
    def ranks(self) -> dict:
        """A weight's path to the rank it has now."""
        return {triplets.weight.path: triplets.rank for triplets in self.budget.triplets}

    def __str__(self):
        budget = self.budget
        return (
            f"{super().__str__()}; rank {budget.initial_rank} each to {budget.rank} on average, "
            f"from update {budget.begin_step} to {budget.end_step}"
        )


def adalora(
    model,
    rank=8,
    *,
    end_step,
    begin_step=None,
    initial_rank=None,
    alpha=None,
    orthogonality=0.5,
    layers=None,
    train=None,
    seed=0,
) -> AdaLoRAReport:
    """Train low-rank deltas whose ranks go where they matter: W + (alpha / rank) · P · diag(λ) · Q.

    Each triplet (λ, a column of P, a row of Q) has an importance: of λ, and on average over the
    column and the row, the product of the moving averages (β = 0.85) of |w · dL/dw| and of its
    distance from that average. The budget, counted over all weights, falls with the cube of the
    time left from `initial_rank` to `rank` per weight. 50 times (at least every 100 updates) the λ
    of all but the most important triplets are set to zero; from `end_step` on they stay zero.
    orthogonality · Σ(‖PᵀP - I‖² + ‖QQᵀ - I‖²) joins the loss, so that triplets stay apart.

    Acts from the next `fit` on, before or after `compile`; k microbatches are one update.
    `ke.merge(model)` folds the deltas in; `ke.save_adapters` writes them alone.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        rank: int >= 1, of a weight on average in the end. Default 8.
        end_step: int >= 1, the update at which the budget is reached; leave some updates after it.
        begin_step: int >= 0, the update from which it falls. Default: a tenth of `end_step`.
        initial_rank: int >= rank, of each weight at first; at most its smaller side. Default: one
            and a half times the rank.
        alpha: float > 0, the delta's scale times `rank`. Default: twice the rank.
        orthogonality: float >= 0. Default 0.5.
        layers: which weights get a delta; see `parametrize.select`. Default: all kernels of Dense,
            EinsumDense and attention layers, without the model's last one (its head).
        train: what else trains: None (default) the model's head, its last layer with a kernel; a
            regular expression searched in the weights' paths; False: nothing.
        seed: int, of P's and Q's initial values. Default 0.

    Returns:
        A `Budgeted`, to print; its `ranks` are those that the weights have now.

    Raises:
        ValueError: a number out of its range, no such weights, weights that have such a delta, or
            a layer with Keras' own LoRA.

    Example:
        >>> report = ke.adalora(model, rank=2, end_step=100)
        >>> max(report.ranks.values()) <= 3
        True

    Reference:
        Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient
        Fine-Tuning". P and Q start orthonormal here, not as small random numbers.
    """
    chosen = select(
        model, layers, caller="ke.adalora", head=False, transform=AdaLoRADelta.name, trains=True
    )
    check_rank(rank, chosen)
    if initial_rank is None:
        smallest = min(min(weight.matrix_shape) for weight in chosen)
        initial_rank = min(math.ceil(1.5 * rank), smallest)
    check_rank(initial_rank, chosen, "initial_rank")
    if initial_rank < rank:
        raise ValueError(
            "`initial_rank` must be at least `rank`, since the budget falls. Received: "
            f"initial_rank={initial_rank} and rank={rank}."
        )
    begin_step = begin_step if begin_step is not None else _tenth(end_step)
    check_settings(begin_step, end_step, orthogonality)
    alpha = 2 * rank if alpha is None else alpha
    check_alpha(alpha)
    budget = RankAllocator(rank, initial_rank, begin_step, end_step)
    seeds = zip(chosen, seeds_of(model, chosen, seed), strict=True)
    pairs = [(weight, AdaLoRADelta(budget, alpha, orthogonality, own)) for weight, own in seeds]
    freeze_base(model, train)
    attach_budgeted(model, pairs, budget)
    report = TuningReport.of(model, "adalora", [weight.path for weight in chosen])
    return AdaLoRAReport(**vars(report), budget=budget)


def attach_budgeted(model, pairs, budget):
    """Attach triplets of one budget to weights, and let the training step look after it."""
    attach(model, pairs)
    with model.distribute_strategy.scope():
        budget.begin([triplets for _, triplets in pairs])
    compute_factored(model, [weight for weight, _ in pairs])
    update_transforms(model)


def _tenth(step):
    return step // 10 if isinstance(step, int) else 0


def check_settings(begin_step, end_step, orthogonality):
    """Refuse steps in the wrong order, and a negative penalty."""
    steps = (begin_step, end_step)
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if not whole or not 0 <= begin_step < end_step:
        raise ValueError(
            "`begin_step` and `end_step` must be ints, counted in updates, with 0 <= begin_step < "
            f"end_step. Received: begin_step={begin_step!r}, end_step={end_step!r}."
        )
    number = isinstance(orthogonality, int | float) and not isinstance(orthogonality, bool)
    if not number or not 0 <= orthogonality < 1e30:
        raise ValueError(f"`orthogonality` must be at least 0. Received: {orthogonality!r}.")
