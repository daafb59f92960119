"""Pruning masks of weights, and their updates in training."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.compression._sparsity_patterns import Pattern
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._transform import MASK, Transform
from keras_efficient.training import _replicas as replicas

_HALF = 1 << 16


class Mask(Transform):
    """Multiply a weight by a mask of zeros and ones.

    Args:
        updater: the `MaskUpdater` it belongs to.
        target: final sparsity in [0, 1), or None where scores decide (soft movement pruning).
        initial: sparsity from which the schedule starts, in [0, 1).

    Attributes:
        mask: uint8 `tf.Variable` of the weight's shape.
        allowed: uint8 `tf.Variable` of that shape, 0 where no later mask may be 1: where the mask
            is 0 or, for an N:M pattern, which is chosen anew, where the weight was zero at first.
        scores: `tf.Variable` by which movement pruning chooses what to keep, or None for pruning
            by magnitude.
    """

    name, place = "mask", MASK

    mask: tf.Variable

    def __init__(self, updater: "MaskUpdater", target: float | None, initial: float):
        self.updater, self.target, self.initial = updater, target, initial
        self.scores: Any = None

    @property
    def trains(self):
        return self.updater is not None and self.updater.movement is not None

    @property
    def in_place(self):
        chain = transform_chain(self.weight)
        assert chain is not None
        return chain.transforms[0] is self and self.scores is None

    def build(self):
        shape = self.weight.shape
        self.mask = self.allowed = self.variable("mask", shape, 1, dtype="uint8")
        if self.updater.pattern.group is not None:
            self.allowed = self.variable("allowed", shape, 1, dtype="uint8")
        movement = self.updater.movement
        if movement is not None:
            penalty = movement.regularizer() if movement.soft else None
            self.scores = self.variable("scores", shape, 0.0, trainable=True, regularizer=penalty)

    def __call__(self, value):
        mask = tf.cast(self.mask, value.dtype)
        if self.scores is None:
            return value * mask
        return _moved(value, mask, self.scores)

    def importance(self) -> tf.Tensor:
        """Return the scores or magnitudes [inputs, outputs]; the smallest are pruned first."""
        if self.scores is not None:
            return self.weight.matrix(replicas.local(self.scores).read_value())
        chain = transform_chain(self.weight)
        assert chain is not None
        value = chain.value(chain.transforms[: chain.transforms.index(self)])
        value *= tf.cast(replicas.local(self.allowed).read_value(), value.dtype)
        return tf.cast(tf.abs(self.weight.matrix(value)), tf.float32)

    def keep_zeros(self) -> None:
        """Mask the numbers that are zero now, unless all of the weight are, as initialized."""
        nonzero = self.weight.unmatrix(self.importance()) > 0
        mask = tf.cast(nonzero | ~tf.reduce_any(nonzero), tf.uint8)
        for variable in (self.allowed, self.mask):
            replicas.local(variable).assign(mask)

    def set(self, matrix: tf.Tensor) -> None:
        """Assign a new mask, given as a matrix [inputs, outputs]."""
        mask = self.weight.unmatrix(tf.cast(matrix, tf.uint8))
        if self.scores is None:
            mask *= replicas.local(self.allowed).read_value()
        replicas.local(self.mask).assign(mask)

    def apply(self) -> None:
        """Set the weight's variable to zero where it is pruned."""
        base = replicas.local(self.weight.value)
        base.assign(base.read_value() * tf.cast(replicas.local(self.mask).read_value(), base.dtype))

    def describe(self):
        movement = self.updater.movement
        share = "by scores" if movement is not None and movement.soft else f"{self.target:.0%}"
        return f"mask {self.updater.pattern.text} {share}"


@tf.custom_gradient
def _moved(value, mask, scores):
    """Return `value * mask`, with the gradient of scores as if they were the mask."""

    def gradient(upstream):
        return upstream * mask, None, tf.cast(upstream * value, scores.dtype)

    return value * mask, gradient


@dataclass(frozen=True)
class Movement:
    """A criterion of `ke.prune` that keeps the weights that move away from zero in training.

    Each number of a weight has a score, and the mask is a step function of the scores. Its gradient
    is passed straight through, so a score grows while dL/dW · W < 0, however small W is.

    Args:
        soft: whether the mask keeps the numbers with sigmoid(score) above `threshold`; `penalty`
            times the mean sigmoid of every weight is then added to the loss, which makes weights
            sparse. Default: False. The highest scores of each weight are then kept, as many as the
            schedule says.
        threshold: in (0, 0.5), used if `soft`. Default: 0.1.
        penalty: above 0, used if `soft`. Default: 10.0.
        scale: above 0, used if `soft`: the score is its variable times this, and the variable gets
            the gradient of the score. Optimizers such as AdamW move a variable by about the
            learning rate per update whatever its gradient, so this sets the scores' own learning
            rate. Default: 500.0, which suits rates of about 5e-5: a number is pruned after 90
            consecutive updates in that direction.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> criterion = ke.compression.Movement(soft=True, penalty=20.0)
        >>> print(ke.prune(model, criterion=criterion, end_step=100, layers="kernel"))
        prune: 1 weights, as many zeros as their scores say, unstructured, from update 0 to 100

    Reference:
        Sanh, Wolf & Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning".
    """

    soft: bool = False
    threshold: float = 0.1
    penalty: float = 10.0
    scale: float = 500.0

    def __post_init__(self):
        if not 0 < self.threshold < 0.5:
            raise ValueError(f"`threshold` must be in (0, 0.5). Received: {self.threshold!r}.")
        for name in ("penalty", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0. Received: {getattr(self, name)!r}.")

    def kept(self, scores: Any) -> tf.Tensor:
        """Return where the mask of the soft form is 1."""
        return tf.sigmoid(self.scale * scores) > self.threshold

    def regularizer(self) -> Callable:
        """Return the regularizer of the scores that makes them fall."""

        def penalty(scores):
            scores = tf.convert_to_tensor(scores)
            # The variable gets the gradient of the score, as in the rest of the loss.
            scores += tf.stop_gradient((self.scale - 1) * scores)
            return self.penalty * tf.reduce_mean(tf.sigmoid(scores))

        return penalty


class MaskUpdater:
    """Updates the masks of one `ke.prune` by a schedule, and applies them to the weights.

    Args:
        pattern: the sparsity pattern.
        schedule: function of a target and an initial sparsity that returns a TF-MOT
            `PruningSchedule`.
        scope: "layer", every weight reaches its target, or "global", all weights together do.
        movement: the `Movement` criterion, or None for pruning by magnitude.
        last: the update at which the masks reach their targets and become constant, or None.

    Attributes:
        masks: list of the `Mask`s.
        step: int64 `tf.Variable`, the number of updates.
        held: uint8 `tf.Variable`, 1 once the masks are constant by `hold`.
    """

    step: Any
    held: Any

    def __init__(
        self,
        pattern: Pattern,
        schedule: Callable,
        scope: str,
        movement: Movement | None,
        last: int | None,
    ):
        self.pattern, self.scope, self.movement, self.last = pattern, scope, movement, last
        self.schedule = schedule
        self.masks: list[Mask] = []

    def build(self, model):
        """Create nothing: all variables belong to the masks."""

    def begin(self, masks: list[Mask]) -> None:
        """Set the attached masks, create the counter of updates, and prune if update 0 does."""
        self.masks = masks
        # These are among the variables of the first mask.
        self.step = masks[0].variable("updates", (), 0, dtype="int64")
        self.held = masks[0].variable("held", (), 0, dtype="uint8")
        start = tf.constant(0, tf.int64)
        if self.movement is None:
            tf.distribute.get_strategy().run(self._begin_with_zeros)
        if bool(self._schedule_of(masks[0])(start)[0]) or self.last == 0:
            tf.distribute.get_strategy().run(self._begin)

    def _begin_with_zeros(self):
        for mask in self.masks:
            mask.keep_zeros()

    def _begin(self):
        self.update(tf.constant(0, tf.int64))
        if self.movement is None:
            self.apply()

    def _schedule_of(self, mask):
        return self.schedule(mask.target, mask.initial)

    def after_update(self):
        """Count the update, choose new masks if the schedule says so, and apply them."""
        step = replicas.local(self.step)
        step.assign_add(1)
        now = step.read_value()
        due = self._schedule_of(self.masks[0])(now)[0]
        if self.last is not None:
            # TF-MOT's frequency may miss the last step (trap 22), after which masks are constant.
            due = (due & (now < self.last)) | tf.equal(now, self.last)
        due &= tf.equal(replicas.local(self.held).read_value(), 0)
        tf.cond(due, self._update_all, lambda: False)
        # An optimizer update makes pruned weights dense again (trap 23).
        if self.movement is None:
            self.apply()
        elif self.last is not None:
            tf.cond(now >= self.last, self._applied, lambda: False)

    def _update_all(self):
        self.update(replicas.local(self.step).read_value())
        return True

    def _applied(self):
        self.apply()
        return True

    def apply(self):
        for mask in self.masks:
            mask.apply()

    def hold(self) -> None:
        """Keep the masks constant from now on; called outside of the graph."""
        self.held.assign(1)

    def sparsity(self) -> float:
        """Return the share of zeros in all masks; called outside of the graph."""
        masks = [mask.mask.numpy() for mask in self.masks]
        return 1 - sum(map(np.count_nonzero, masks)) / sum(map(np.size, masks))

    def update(self, step: tf.Tensor) -> None:
        """Choose new masks for this step, by TF-MOT's `pruning_impl.Pruning`."""
        if self.movement is not None and self.movement.soft:
            for mask in self.masks:
                mask.set(mask.weight.matrix(self.movement.kept(replicas.local(mask.scores))))
            return
        if self.scope == "global":
            self._update_together(step)
            return
        for mask in self.masks:
            values = self._positive(mask.importance())
            mask.set(self._pruning(mask, step)._maybe_update_block_mask(values)[1])

    def _update_together(self, step):
        sizes = [mask.weight.size for mask in self.masks]
        flat = tf.concat([tf.reshape(mask.importance(), [-1]) for mask in self.masks], 0)
        kept = self._pruning(self.masks[0], step)._update_mask(self._positive(flat))[1]
        for mask, part in zip(self.masks, tf.split(kept, sizes), strict=True):
            mask.set(tf.reshape(part, mask.weight.matrix_shape))

    def _positive(self, values):
        """Shift scores so that the least is 0, because TF-MOT takes absolute values."""
        return values if self.movement is None else values - tf.reduce_min(values)

    def _pruning(self, mask, step):
        pattern = self.pattern
        zeros = None if pattern.group is None else (pattern.group - pattern.kept, pattern.group)
        schedule = self._schedule_of(mask)
        made = _exact_pruning()(lambda: step, [], schedule, pattern.block, "AVG", zeros)
        made.target, made.last = mask.target, self.last
        return made


@functools.cache
def _exact_pruning():
    pruning_impl = tf_mot("sparsity.keras.pruning_impl")

    class Exact(pruning_impl.Pruning):
        """TF-MOT's pruning with an exact number of zeros, and without a sort.

        TF-MOT keeps all numbers that reach the threshold, which are too many where numbers are
        equal (zeros, clusters). Here only as many of these are kept as needed. From the last update
        on the number of zeros is computed from the target itself and not from its float32 value.

        Attributes:
            target: final sparsity.
            last: the last update, or None.
        """

        def _update_mask(self, weights):
            flat = tf.reshape(tf.cast(tf.abs(weights), tf.float32), [-1])
            kept = self._kept(flat.shape[0])
            threshold = kth_largest(flat, kept)
            mask = flat >= threshold
            surplus = tf.math.count_nonzero(mask, dtype=tf.int32) - kept

            def told_apart():
                equal = tf.equal(flat, threshold)
                return mask & ~(equal & (tf.cumsum(tf.cast(equal, tf.int32)) <= surplus))

            mask = tf.cond(surplus > 0, told_apart, lambda: mask)
            return threshold, tf.reshape(tf.cast(mask, weights.dtype), tf.shape(weights))

        def _kept(self, size):
            step = self._step_fn()
            share = 1 - self._pruning_schedule(step)[1]
            kept = tf.cast(tf.round(tf.cast(size, tf.float32) * share), tf.int32)
            if self.last is not None:
                kept = tf.where(step >= self.last, round(size * (1 - self.target)), kept)
            return tf.maximum(kept, 1)

    return Exact


def sparsity_of(array: np.ndarray) -> float:
    """Return the share of exact zeros."""
    return 1 - np.count_nonzero(array) / max(1, np.size(array))


def kth_largest(values: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """Return the k-th largest of non-negative numbers.

    Non-negative floats have the order of their bits, so two histograms, of the upper and of the
    lower 16 bits, find the number in two passes. `tf.math.top_k`, which TF-MOT uses, sorts, which
    takes 60 times as long on ten million numbers.

    Args:
        values: float32 tensor [n], none below 0.
        k: int32 scalar from 1 to n.

    Returns:
        float32 scalar.
    """
    bits = tf.bitcast(values, tf.int32)
    upper = bits // _HALF
    # The sign bit is 0.
    first, k = _bin_of(upper, k, _HALF // 2)
    # Numbers with other upper bits go to a bin beyond the histogram, which ignores it.
    lower = tf.where(tf.equal(upper, first), bits % _HALF, _HALF)
    second, _ = _bin_of(lower, k, _HALF)
    return tf.bitcast(first * _HALF + second, tf.float32)


def _bin_of(numbers, k, bins):
    """Return the bin of the k-th largest number, and its rank among the numbers of that bin."""
    nothing = tf.constant([], tf.int32)
    counts = tf.raw_ops.DenseBincount(input=numbers, size=bins, weights=nothing)
    reaching = tf.cumsum(counts, reverse=True)
    found = tf.reduce_sum(tf.cast(reaching >= k, tf.int32)) - 1
    return found, k - (tf.gather(reaching, found) - tf.gather(counts, found))
