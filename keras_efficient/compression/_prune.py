"""Prune the weights of a model while it trains."""

import functools
from dataclasses import dataclass

import tensorflow as tf

from keras_efficient.compression._masks import Mask, MaskUpdater, Movement, sparsity_of
from keras_efficient.compression._reconstruction import Reconstruction
from keras_efficient.compression._sensitivity import Sensitivity, sensitivity
from keras_efficient.compression._sparsity_patterns import pattern_of
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._checks import check_weights
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._weights import EMBEDDING, KERNEL
from keras_efficient.training._transform_updates import update_transforms


@dataclass(frozen=True)
class PruneReport:
    """What `prune` set.

    Attributes:
        targets: dict of a weight's path to the sparsity it ends at; None where scores decide how
            many are kept (soft movement pruning).
        pattern: str.
        begin_step, end_step: int, the updates at which sparsity starts to grow, and is reached;
            `end_step` is None if a schedule of TF-MOT has no end.
        sensitivity: the `Sensitivity` that set the targets (`adaptive`), or None.
        by_magnitude: tuple of the paths that a `Reconstruction` left to it.
    """

    targets: dict
    pattern: str
    begin_step: int
    end_step: int | None
    sensitivity: Sensitivity | None = None
    by_magnitude: tuple = ()

    def __str__(self):
        shares = self.targets.values()
        if None in shares:
            share = "as many zeros as their scores say"
        else:
            low, high = min(shares), max(shares)
            share = (f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}") + " zeros"
        when = f"from update {self.begin_step}"
        if self.end_step is not None:
            when = f"{when} to {self.end_step}" if self.end_step else "at once"
        text = f"prune: {len(self.targets)} weights, {share}, {self.pattern}, {when}"
        left = ", ".join(self.by_magnitude)
        return text + (f"; by magnitude, not by the data: {left}" if left else "")


def prune(
    model,
    final_sparsity=None,
    *,
    begin_step=0,
    end_step=0,
    schedule="polynomial",
    frequency=None,
    pattern="unstructured",
    scope="layer",
    criterion="magnitude",
    layers=None,
    adaptive=None,
) -> PruneReport:
    """Set the least important weights to zero, more and more of them while the model trains.

    Acts from the next `fit` on, before or after `compile`, without a callback: the training step
    counts updates (k microbatches are one), moves the masks by the schedule, and masks the weights
    after every update, before checkpoints and averages see them. From `end_step` on every chosen
    weight has exactly its target's zeros: `round(size · (1 - sparsity))` numbers are kept.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        final_sparsity: float in (0, 1), the share of zeros each weight ends with; or a dict of a
            weight's path to that, or a `compress.Sensitivity`, which also choose the weights. None
            where something else has it: a pattern "N:M", a schedule of TF-MOT, soft movement.
        begin_step: int >= 0, the update at which sparsity starts to grow. Default 0.
        end_step: int, the update at which it is reached, and after which masks stay. 0 (default):
            at once, before any training.
        schedule: "polynomial" (default: TF-MOT's cubic growth), "constant" (all at `begin_step`)
            or a TF-MOT `PruningSchedule` (which has its own sparsity, steps and frequency).
        frequency: int >= 1, updates between two moves of the masks. Default: 50 moves in all, at
            least every 100 updates.
        pattern: "unstructured" (default); "N:M", as "2:4": N kept of every M inputs of an output,
            from `begin_step` on; "block:IxO", as "block:1x4": blocks of I inputs x O outputs, of
            which `round(blocks · (1 - sparsity))` are kept.
        scope: "layer" (default): each weight reaches the target; "global": all together do.
        criterion: "magnitude" (default), "movement" or a `compress.Movement`; or a
            `compress.Reconstruction` with some data, which prunes at once and corrects what stays.
        layers: which weights; see `parametrize.select`: kernels and embeddings. Default: all
            kernels of Dense, EinsumDense and attention layers, without the model's last one (its
            head).
        adaptive: a batch `(features, labels)` or a dataset of a few: each weight gets a target of
            its own by its sensitivity there (to pruning by magnitude), such that all together
            reach `final_sparsity` (see `compress.sensitivity`). Default None: the same for all. The
            callback `AdaptiveSparsity` stops the growth where validation falls.

    Returns:
        A `Pruned`, to print.

    Raises:
        ValueError: an argument out of range or at odds with another, a pattern that does not divide
            a weight, a target below the sparsity a weight has, no such weights, weights that are
            pruned already, or another strategy's scope.
        ImportError: TF-MOT is not installed.

    Example:
        >>> print(ke.prune(model, 0.5, end_step=100))  # doctest: +ELLIPSIS
        prune: ...

    Reference:
        Zhu & Gupta 2017, "To prune, or not to prune"; the schedules and masks are those of
        tensorflow-model-optimization. Mishra et al. 2021 for N:M; Sanh et al. 2020 for movement;
        Frantar & Alistarh 2023 for reconstruction.
    """
    pattern, movement = pattern_of(pattern), _movement(criterion)
    reconstruction = criterion if isinstance(criterion, Reconstruction) else None
    _check_scope(scope, pattern)
    given = _OwnSchedule.of(schedule, begin_step, end_step, frequency)
    if given is None:
        make, begin_step, end_step = _schedules(schedule, begin_step, end_step, frequency)
    else:
        make, begin_step, end_step = given.make, given.begin_step, given.end_step
    soft = movement is not None and movement.soft
    if given is not None and final_sparsity is None and pattern.sparsity is None and not soft:
        final_sparsity = given.sparsity
    _check_movement(movement, begin_step, end_step, schedule)
    weights = _chosen(model, layers, final_sparsity)
    if reconstruction is not None:
        reconstruction.check(weights, pattern, scope, begin_step, end_step, schedule)
    check_weights(weights, "ke.prune", transform=Mask.name)
    for weight in weights:
        pattern.check(weight)
    found = None
    if adaptive is not None:
        _check_adaptive(adaptive, final_sparsity, pattern, scope, soft, given)
        found = sensitivity(model, adaptive, final_sparsity, layers=[w.path for w in weights])
        final_sparsity = found
    targets = _targets(weights, final_sparsity, pattern, soft)
    if given is not None and pattern.sparsity is None and not soft:
        given.check(targets)
    if scope == "global" and len(set(targets.values())) > 1:
        raise ValueError(
            "scope='global' has one target for all weights together. Received: several in "
            "`final_sparsity`. Use scope='layer'."
        )
    if movement is None and pattern.sparsity is None:
        least = _check_grows(weights, targets, scope)
        if given is None:
            # (What is zero already stays so.)
            make = functools.partial(make, initial=least)
    left = []
    if reconstruction is not None:
        left = reconstruction.apply(model, weights, targets, pattern)
    masks = MaskUpdater(pattern, make, scope, movement, end_step)
    pairs = [(weight, Mask(masks, targets[weight.path])) for weight in weights]
    attach(model, pairs)
    with model.distribute_strategy.scope():
        masks.begin([mask for _, mask in pairs])
    update_transforms(model)
    left = tuple(weight.path for weight in left)
    return PruneReport(targets, pattern.text, begin_step, end_step, found, left)


def _movement(criterion):
    if criterion in ("magnitude", "movement"):
        return Movement() if criterion == "movement" else None
    if isinstance(criterion, Movement):
        return criterion
    if isinstance(criterion, Reconstruction):
        return None
    raise ValueError(
        "`criterion` must be 'magnitude', 'movement', a compress.Movement(...) or a "
        f"compress.Reconstruction(batches). Received: {criterion!r}."
    )


def _check_scope(scope, pattern):
    if scope not in ("layer", "global"):
        raise ValueError(f"`scope` must be 'layer' or 'global'. Received: {scope!r}.")
    if scope == "global" and pattern.text != "unstructured":
        raise ValueError(
            "scope='global' compares single weights. Received: pattern="
            f"{pattern.text!r}. Use scope='layer'."
        )


def _check_movement(movement, begin_step, end_step, schedule):
    if movement is None:
        return
    if not end_step:
        raise ValueError(
            "Movement pruning learns its scores in training, up to a last update. Received: "
            f"end_step={end_step!r}. Give the update at which the sparsity is to be reached."
        )
    if schedule == "constant" and begin_step == 0:
        raise ValueError(
            "Movement pruning has no scores before training. Received: schedule='constant' with "
            "begin_step=0, which prunes then. Give a later `begin_step`, or the schedule "
            "'polynomial'."
        )


def _check_adaptive(adaptive, final_sparsity, pattern, scope, soft, given):
    if isinstance(adaptive, bool):
        raise TypeError(
            "`adaptive` must be what the weights' sensitivity is measured on: a batch (features, "
            f"labels) or a small tf.data.Dataset. Received: {adaptive!r}. Give "
            "adaptive=next(iter(dataset))."
        )
    odds = {
        f"pattern={pattern.text!r}": pattern.sparsity is not None,
        f"scope={scope!r}": scope == "global",
        "a soft Movement": soft,
        f"a {given.name}" if given is not None else "": given is not None,
        "several targets": isinstance(final_sparsity, dict | Sensitivity),
    }
    at_odds = [what for what, holds in odds.items() if holds]
    if at_odds:
        raise ValueError(
            "`adaptive` gives each weight a target of its own. Received: it with "
            f"{' and '.join(at_odds)}, which leaves no choice. Leave one of them out."
        )


def _chosen(model, layers, final_sparsity):
    """The weights to prune."""
    if isinstance(final_sparsity, Sensitivity):
        final_sparsity = final_sparsity.targets
    if layers is None and isinstance(final_sparsity, dict):
        weights = select(model, None, (KERNEL, EMBEDDING), caller="ke.prune")
        unknown = set(final_sparsity) - {weight.path for weight in weights}
        if unknown or not final_sparsity:
            raise ValueError(
                "A dict as `final_sparsity` has a target for each weight to prune, by its path. "
                f"Received: {min(unknown) if unknown else final_sparsity!r}, no weight in "
                f"{model.name!r}. `print(ke.summary(model))` lists the paths."
            )
        return [weight for weight in weights if weight.path in final_sparsity]
    if layers is None:
        return select(model, caller="ke.prune", head=False)
    return select(model, layers, (KERNEL, EMBEDDING), caller="ke.prune")


def _targets(weights, final_sparsity, pattern, soft):
    if isinstance(final_sparsity, Sensitivity):
        final_sparsity = final_sparsity.targets
    if pattern.sparsity is not None or soft:
        fixed = None if soft else pattern.sparsity
        if final_sparsity not in (None, fixed):
            why = "its threshold and penalty" if soft else f"the pattern {pattern.text!r}"
            raise ValueError(
                f"The sparsity is that of {why}. Received: final_sparsity={final_sparsity!r}. "
                "Leave it out."
            )
        return {weight.path: fixed for weight in weights}
    if isinstance(final_sparsity, dict):
        missing = [w.path for w in weights if w.path not in final_sparsity]
        if missing:
            raise ValueError(
                "A dict as `final_sparsity` must have every chosen weight. Received: one without "
                f"{missing[0]!r}. Leave `layers` out, or choose the weights it has."
            )
        targets = {weight.path: final_sparsity[weight.path] for weight in weights}
    else:
        targets = dict.fromkeys((weight.path for weight in weights), final_sparsity)
    for path, target in targets.items():
        number = isinstance(target, int | float) and not isinstance(target, bool)
        # (Of several targets some may be 0: such weights stay dense.)
        several = isinstance(final_sparsity, dict)
        if not number or not 0 <= target < 1 or (target == 0 and not several):
            raise ValueError(
                "`final_sparsity` must be above 0 and below 1: the share of zeros at the end. "
                f"Received: {target!r} for {path!r}."
            )
    return {path: float(target) for path, target in targets.items()}


def _check_grows(weights, targets, scope):
    """Refuse targets below what there is; returns the least sparsity there is."""
    zeros = {}
    for weight in weights:
        chain = transform_chain(weight)
        value = weight.value if chain is None else chain.value()
        zeros[weight.path] = sparsity_of(value.numpy()) * weight.size
    sizes = {weight.path: weight.size for weight in weights}
    if scope == "global":
        everything = f"all {len(weights)} weights together"
        sizes, zeros = {everything: sum(sizes.values())}, {everything: sum(zeros.values())}
        targets = {everything: next(iter(targets.values()))}
    for path, size in sizes.items():
        if round(zeros[path]) > round(targets[path] * size):
            raise ValueError(
                "Pruning makes weights sparser. Received: a target of "
                f"{targets[path]:.1%} zeros for {path!r}, now with {zeros[path] / size:.1%}. Raise "
                "`final_sparsity`, or leave the weight out with `layers=`."
            )
    return float(min(zeros[path] / size for path, size in sizes.items()))


def _schedules(schedule, begin_step, end_step, frequency):
    """A function of a target that gives its TF-MOT schedule; and its first and last update."""
    module = tf_mot("sparsity.keras.pruning_schedule")
    if schedule not in ("polynomial", "constant"):
        raise ValueError(
            "`schedule` must be 'polynomial', 'constant' or a PruningSchedule of "
            f"tensorflow-model-optimization. Received: {schedule!r}."
        )
    if not (0 <= begin_step <= end_step):
        raise ValueError(
            "Sparsity grows from update `begin_step` (at least 0) to `end_step`. Received: "
            f"begin_step={begin_step!r}, end_step={end_step!r}. Give the number of updates of the "
            "training, less some to recover, as `end_step`."
        )
    if frequency is not None and frequency < 1:
        raise ValueError(f"`frequency` must be at least 1 update. Received: {frequency!r}.")
    every = frequency or max(1, min(100, (end_step - begin_step) // 50))
    constant = schedule == "constant" or begin_step == end_step

    def made(target, initial=0.0):
        # (Of soft movement it says only when.)
        target = target or 0.0
        if constant:
            return module.ConstantSparsity(target, begin_step, end_step, every)
        return module.PolynomialDecay(initial, target, begin_step, end_step, 3, every)

    return made, begin_step, end_step


class _OwnSchedule:
    """A `PruningSchedule` of TF-MOT that the caller made.

    Attributes:
        name: str.
        begin_step, end_step: int; `end_step` is None if it has no end.
        sparsity: float, where it ends.
    """

    def __init__(self, schedule):
        self.schedule, self.name = schedule, type(schedule).__name__
        self.begin_step, end_step = getattr(schedule, "begin_step", 0), _end(schedule)
        self.end_step = end_step
        last = self.begin_step if end_step is None else end_step
        # (As it was given, not as float32.)
        exact = getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
        self.sparsity = float(schedule(tf.constant(last, tf.int64))[1] if exact is None else exact)

    @classmethod
    def of(cls, schedule, begin_step, end_step, frequency):
        """The schedule, if it is one of TF-MOT."""
        if isinstance(schedule, str):
            return None
        if not isinstance(schedule, tf_mot("sparsity.keras.pruning_schedule").PruningSchedule):
            return None
        if begin_step or end_step or frequency is not None:
            raise ValueError(
                "A PruningSchedule has its own steps and frequency. Received: "
                f"{type(schedule).__name__} with begin_step={begin_step!r}, end_step={end_step!r}, "
                f"frequency={frequency!r}. Leave these out."
            )
        return cls(schedule)

    def make(self, target):
        return self.schedule

    def check(self, targets):
        other = {target for target in targets.values() if target != self.sparsity}
        if other:
            raise ValueError(
                f"A PruningSchedule ends at its own sparsity. Received: {self.name}, which ends at "
                f"{self.sparsity!r}, with final_sparsity={min(other)!r}. Leave it out."
            )


def _end(schedule):
    end = getattr(schedule, "end_step", -1)
    return None if end < 0 else end
