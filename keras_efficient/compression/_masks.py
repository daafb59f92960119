"""A pruning mask on a weight, and what keeps the masks of a model up to date."""

import functools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.compression._top_k import kth_largest
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._transform import MASK, Transform
from keras_efficient.training import _replicas as replicas


class Mask(Transform):
    """See a weight through a mask of zeros and ones.

    Args:
        updater: the `Masks` it belongs to.
        target: float in [0, 1), the sparsity it ends at; None where scores decide (soft movement).

    Attributes:
        mask: uint8 `tf.Variable` of the weight's shape.
        scores: `tf.Variable` that decides what is kept (movement pruning), or None: magnitudes do.
    """

    name, place = "mask", MASK

    def __init__(self, updater, target):
        self.updater, self.target, self.scores = updater, target, None

    @property
    def trains(self):
        return self.updater is not None and self.updater.movement is not None

    @property
    def in_place(self):
        only = transform_chain(self.weight).transforms[0] is self
        return only and self.scores is None

    def build(self):
        shape = self.weight.shape
        self.mask = self.variable("mask", shape, 1, dtype="uint8")
        movement = self.updater.movement
        if movement is not None:
            penalty = movement.regularizer(self.weight) if movement.soft else None
            self.scores = self.variable("scores", shape, 0.0, trainable=True, regularizer=penalty)

    def __call__(self, value):
        mask = tf.cast(self.mask, value.dtype)
        if self.scores is None:
            return value * mask
        return _moved(value, mask, self.scores)

    def importance(self):
        """What decides: the larger, the longer a number is kept. As a matrix."""
        if self.scores is not None:
            return self.weight.matrix(replicas.local(self.scores).read_value())
        chain = transform_chain(self.weight)
        value = chain.value(chain.transforms[: chain.transforms.index(self)])
        return tf.cast(tf.abs(self.weight.matrix(value)), tf.float32)

    def set(self, matrix):
        """Take a new mask, given as a matrix."""
        mask = self.weight.unmatrix(tf.cast(matrix, tf.uint8))
        replicas.local(self.mask).assign(mask)

    def apply(self):
        """Let the weight beneath be zero where it is pruned."""
        base = replicas.local(self.weight.value)
        base.assign(base.read_value() * tf.cast(replicas.local(self.mask).read_value(), base.dtype))

    def describe(self):
        movement = self.updater.movement
        share = "by scores" if movement is not None and movement.soft else f"{self.target:.0%}"
        return f"mask {self.updater.pattern.text} {share}"


@tf.custom_gradient
def _moved(value, mask, scores):
    """`value * mask`; the gradient of a score is the weight's, as if it had multiplied it."""

    def gradient(upstream):
        return upstream * mask, None, tf.cast(upstream * value, scores.dtype)

    return value * mask, gradient


@dataclass(frozen=True)
class Movement:
    """Keep the weights that move away from zero: scores learn, with the weights' own gradients.

    The mask is a step function of a score per weight; its gradient is passed straight through, so
    that a score grows while dL/dW · W < 0, whatever the weight's size.

    Args:
        soft: False (default): the top share of each weight's scores is kept, the share by the
            schedule. True: those with sigmoid(score) above `threshold` are, and `penalty` times
            the mean sigmoid of every weight joins the loss, which is what makes weights sparse.
        threshold: float in (0, 0.5), of `soft`. Default 0.1.
        penalty: float > 0, of `soft`. Default 10.
        scale: float > 0, of `soft`: a score is so many times its variable, which gets the score's
            gradient. An optimizer such as AdamW moves a variable by about its learning rate per
            update whatever the gradient, so this is what gives scores a rate of their own (the
            order of scores, which decides otherwise, does not depend on it). Default 500, for
            rates about 5e-5: 90 updates in a row from kept, at a score of 0, to pruned.

    Raises:
        ValueError: a number out of its range.

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

    def kept(self, scores):
        """Where the mask is 1, of the soft form."""
        return tf.sigmoid(self.scale * scores) > self.threshold

    def regularizer(self, weight):
        """The term of the loss that makes a weight's scores fall."""

        def penalty(scores):
            scores = tf.convert_to_tensor(scores)
            # The gradient is by the score, as that of the rest of the loss is.
            scores += tf.stop_gradient((self.scale - 1) * scores)
            return self.penalty * tf.reduce_mean(tf.sigmoid(scores))

        return penalty


class MaskUpdater:
    """Keeps the masks of one `ke.prune`: moves them by a schedule, and applies them.

    Args:
        pattern: `Pattern`.
        schedule: function of a target that gives a TF-MOT `PruningSchedule`.
        scope: "layer": each weight has its target; "global": all together.
        movement: `Movement`, by which scores decide, or None.
        last: int or None, the update at which the masks reach their targets for good.

    Attributes:
        masks: list of `Mask`s.
        step: int64 `tf.Variable`, the updates so far.
        held: uint8 `tf.Variable`, 1 where the masks are to move no more.
    """

    def __init__(self, pattern, schedule, scope, movement, last):
        self.pattern, self.scope, self.movement, self.last = pattern, scope, movement, last
        self.schedule = schedule
        self.masks, self.step = [], None

    def build(self, model):
        """(All variables are those of the masks.)"""

    def begin(self, masks):
        """Take the attached masks, make the counter of updates, and do what is due at update 0."""
        self.masks = masks
        # (With the variables of the first mask.)
        self.step = masks[0].variable("updates", (), 0, dtype="int64")
        self.held = masks[0].variable("held", (), 0, dtype="uint8")
        start = tf.constant(0, tf.int64)
        if bool(self.schedule(masks[0].target)(start)[0]) or self.last == 0:
            tf.distribute.get_strategy().run(self._begin)

    def _begin(self):
        self.update(tf.constant(0, tf.int64))
        if self.movement is None:
            self.apply()

    def after_update(self):
        """Count the update, move the masks if it is time, and apply them."""
        step = replicas.local(self.step)
        step.assign_add(1)
        now = step.read_value()
        due = self.schedule(self.masks[0].target)(now)[0]
        if self.last is not None:
            # TF-MOT's frequency need not hit the last step (trap 22); and from there on masks stay.
            due = (due & (now < self.last)) | tf.equal(now, self.last)
        due &= tf.equal(replicas.local(self.held).read_value(), 0)
        tf.cond(due, self._update_all, lambda: False)
        # An update makes pruned weights dense again (trap 23).
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

    def hold(self):
        """Let the masks stay as they are from now on; called outside of the graph."""
        self.held.assign(1)

    def sparsity(self) -> float:
        """The share of zeros in all masks; called outside of the graph."""
        masks = [mask.mask.numpy() for mask in self.masks]
        return 1 - sum(map(np.count_nonzero, masks)) / sum(map(np.size, masks))

    def update(self, step):
        """Choose what is kept at this step, by TF-MOT's `pruning_impl.Pruning`."""
        if self.movement is not None and self.movement.soft:
            for mask in self.masks:
                mask.set(mask.weight.matrix(self.movement.kept(replicas.local(mask.scores))))
            return
        if self.scope == "global":
            self._update_together(step)
            return
        for mask in self.masks:
            pruning = self._pruning(mask.target, step)
            values = self._positive(mask.importance())
            mask.set(pruning._maybe_update_block_mask(values)[1])

    def _update_together(self, step):
        sizes = [mask.weight.size for mask in self.masks]
        flat = tf.concat([tf.reshape(mask.importance(), [-1]) for mask in self.masks], 0)
        kept = self._pruning(self.masks[0].target, step)._update_mask(self._positive(flat))[1]
        for mask, part in zip(self.masks, tf.split(kept, sizes), strict=True):
            mask.set(tf.reshape(part, mask.weight.matrix_shape))

    def _positive(self, values):
        """Scores from 0 up, in the same order: TF-MOT takes absolute values."""
        return values if self.movement is None else values - tf.reduce_min(values)

    def _pruning(self, target, step):
        pattern = self.pattern
        zeros = None if pattern.group is None else (pattern.group - pattern.kept, pattern.group)
        schedule = self.schedule(target)
        made = _exact_pruning()(lambda: step, [], schedule, pattern.block, "AVG", zeros)
        made.target, made.last = target, self.last
        return made


@functools.cache
def _exact_pruning():
    pruning_impl = tf_mot("sparsity.keras.pruning_impl")

    class Exact(pruning_impl.Pruning):
        """TF-MOT's, but with equal magnitudes told apart, and without a sort.

        Its mask keeps all that reach the threshold: where many are equal (zeros, clusters), too
        many. Here the first of those give way. From the last update on the count is that of the
        target itself, not of its float32.

        Attributes:
            target: float.
            last: int or None.
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


def sparsity_of(array) -> float:
    """The share of exact zeros."""
    return 1 - np.count_nonzero(array) / max(1, np.size(array))
