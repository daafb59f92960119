"""A pruning mask on a weight, and what keeps the masks of a model up to date."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_efficient.compress.tf_mot import tf_mot
from keras_efficient.parametrize.attaching import chain_of
from keras_efficient.parametrize.transform import MASK, Transform
from keras_efficient.step import replicas


class Mask(Transform):
    """See a weight through a mask of zeros and ones.

    Args:
        keeper: the `Masks` it belongs to.
        target: float in (0, 1), the sparsity it ends at.

    Attributes:
        mask: uint8 `tf.Variable` of the weight's shape.
        scores: `tf.Variable` that decides what is kept (movement pruning), or None: magnitudes do.
    """

    name, place = "mask", MASK

    def __init__(self, keeper, target):
        self.keeper, self.target, self.scores = keeper, target, None

    @property
    def in_place(self):
        only = chain_of(self.weight).transforms[0] is self
        return only and self.scores is None

    def build(self):
        shape = self.weight.shape
        self.mask = self.variable("mask", shape, 1, dtype="uint8")
        movement = self.keeper.movement
        if movement is not None:
            penalty = movement.regularizer(self.weight) if movement.soft else None
            self.scores = self.variable("scores", shape, 0.0, trainable=True, regularizer=penalty)

    def __call__(self, value):
        mask = tf.cast(self.mask, value.dtype)
        if self.scores is None:
            return value * mask
        return _moved(value, mask, self.scores)

    def magnitudes(self):
        """What decides: the larger, the longer a number is kept. As a matrix."""
        if self.scores is not None:
            scores = replicas.here(self.scores).read_value()
            # (TF-MOT takes absolute values.)
            return self.weight.matrix(scores - tf.reduce_min(scores))
        chain = chain_of(self.weight)
        value = chain.value(chain.transforms[: chain.transforms.index(self)])
        return tf.cast(tf.abs(self.weight.matrix(value)), tf.float32)

    def set(self, matrix):
        """Take a new mask, given as a matrix."""
        mask = self.weight.unmatrix(tf.cast(matrix, tf.uint8))
        replicas.here(self.mask).assign(mask)

    def apply(self):
        """Let the weight beneath be zero where it is pruned."""
        base = replicas.here(self.weight.value)
        base.assign(base.read_value() * tf.cast(replicas.here(self.mask).read_value(), base.dtype))

    def describe(self):
        return f"mask {self.keeper.pattern.text} {self.target:.0%}"


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
            the mean of all sigmoids joins the loss, which is what makes weights sparse.
        threshold: float in (0, 0.5), of `soft`. Default 0.1.
        penalty: float > 0, of `soft`. Default 10.
        scale: float > 0, a score is so many times its variable. An optimizer such as AdamW moves a
            variable by about its learning rate per update whatever the gradient, so this is what
            gives scores a rate of their own. Default 500, for rates about 5e-5.

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
        return lambda scores: self.penalty * tf.reduce_mean(tf.sigmoid(self.scale * scores))


class Masks:
    """Keeps the masks of one `ke.prune`: moves them by a schedule, and applies them.

    Args:
        pattern: `Pattern`.
        schedule: function of a target that gives a TF-MOT `PruningSchedule`.
        scope: "layer": each weight has its target; "global": all together.
        movement: `Movement`, by which scores decide, or None.
        last: int or None, the update at which the masks reach their targets for good.
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
        start = tf.constant(0, tf.int64)
        if bool(self.schedule(masks[0].target)(start)[0]) or self.last == 0:
            tf.distribute.get_strategy().run(self._begin)

    def _begin(self):
        self.update(tf.constant(0, tf.int64))
        if self.movement is None:
            self.apply()

    def after_update(self):
        """Count the update, move the masks if it is time, and apply them."""
        step = replicas.here(self.step)
        step.assign_add(1)
        now = step.read_value()
        due = self.schedule(self.masks[0].target)(now)[0]
        if self.last is not None:
            # TF-MOT's frequency need not hit the last step (trap 22); and from there on masks stay.
            due = (due & (now < self.last)) | tf.equal(now, self.last)
        tf.cond(due, self._update_all, lambda: False)
        # An update makes pruned weights dense again (trap 23).
        if self.movement is None:
            self.apply()
        elif self.last is not None:
            tf.cond(now >= self.last, self._applied, lambda: False)

    def _update_all(self):
        self.update(replicas.here(self.step).read_value())
        return True

    def _applied(self):
        self.apply()
        return True

    def apply(self):
        for mask in self.masks:
            mask.apply()

    def update(self, step):
        """Choose what is kept at this step, by TF-MOT's `pruning_impl.Pruning`."""
        if self.movement is not None and self.movement.soft:
            for mask in self.masks:
                mask.set(mask.weight.matrix(self.movement.kept(replicas.here(mask.scores))))
            return
        if self.scope == "global":
            self._update_together(step)
            return
        for mask in self.masks:
            pruning = self._pruning(self.schedule(mask.target), step)
            mask.set(pruning._maybe_update_block_mask(mask.magnitudes())[1])

    def _update_together(self, step):
        sizes = [mask.weight.size for mask in self.masks]
        flat = tf.concat([tf.reshape(mask.magnitudes(), [-1]) for mask in self.masks], 0)
        pruning = self._pruning(self.schedule(self.masks[0].target), step)
        kept = pruning._update_mask(flat)[1]
        for mask, part in zip(self.masks, tf.split(kept, sizes), strict=True):
            mask.set(tf.reshape(part, mask.weight.matrix_shape))

    def _pruning(self, schedule, step):
        pattern = self.pattern
        zeros = None if pattern.group is None else (pattern.group - pattern.kept, pattern.group)
        return _exact_pruning()(lambda: step, [], schedule, pattern.block, "AVG", zeros)


def _exact_pruning():
    pruning_impl = tf_mot("sparsity.keras.pruning_impl")

    class Exact(pruning_impl.Pruning):
        """TF-MOT's, but with equal magnitudes told apart.

        Its mask keeps all that reach the threshold: where many are equal (zeros, clusters), too
        many. Here the first of those give way.
        """

        def _update_mask(self, weights):
            threshold, mask = super()._update_mask(weights)
            sparsity = self._pruning_schedule(self._step_fn())[1]
            size = tf.cast(tf.size(weights), tf.float32)
            kept = tf.maximum(tf.round(size * (1 - sparsity)), 1)
            surplus = tf.cast(tf.math.count_nonzero(mask), tf.int32) - tf.cast(kept, tf.int32)
            flat = tf.reshape(mask, [-1])
            equal = tf.reshape(tf.abs(weights) <= threshold, [-1]) & (flat > 0)
            late = equal & (tf.cumsum(tf.cast(equal, tf.int32)) <= surplus)
            flat = tf.where(late, tf.zeros_like(flat), flat)
            return threshold, tf.reshape(flat, tf.shape(weights))

    return Exact


def sparsity_of(array) -> float:
    """The share of exact zeros."""
    return 1 - np.count_nonzero(array) / max(1, np.size(array))
