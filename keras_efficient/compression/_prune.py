"""Pruning at once or during training."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_efficient.architecture._weights import EMBEDDING, KERNEL
from keras_efficient.compression._masks import Mask, MaskUpdater, Movement, sparsity_of
from keras_efficient.compression._reconstruction import Reconstruction
from keras_efficient.compression._sensitivity import Sensitivity, sensitivity
from keras_efficient.compression._sparsity_patterns import pattern_of
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._checks import check_weights
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._select import select
from keras_efficient.training._transform_updates import update_transforms


@dataclass(frozen=True)
class PruneReport:
    """The result of `prune`; prints as one line.

    Attributes:
        targets: dict of a weight's path to its final sparsity, in [0, 1); None where scores decide
            how many numbers are kept (soft movement pruning).
        pattern: the sparsity pattern.
        begin_step: the update at which sparsity starts to grow.
        end_step: the update at which the targets are reached, or None if a schedule of TF-MOT has
            no end.
        sensitivity: the `Sensitivity` that set the targets (`adaptive`), or None.
        by_magnitude: tuple of the paths of the weights that a `Reconstruction` could not prune,
            which were pruned by magnitude.
    """

    targets: dict[str, float | None]
    pattern: str
    begin_step: int
    end_step: int | None
    sensitivity: Sensitivity | None = None
    by_magnitude: tuple[str, ...] = ()

    def __str__(self):
        shares = [target for target in self.targets.values() if target is not None]
        if not shares:
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
    model: Model,
    final_sparsity: Any = None,
    *,
    begin_step: int = 0,
    end_step: int = 0,
    schedule: Any = "polynomial",
    frequency: int | None = None,
    pattern: str = "unstructured",
    scope: str = "layer",
    criterion: Any = "magnitude",
    layers: Any = None,
    adaptive: Any = None,
) -> PruneReport:
    """Set the least important weights to zero, at once or gradually while the model trains.

    Takes effect at the next `fit`, whether called before or after `compile`, and needs no callback:
    the training step counts updates (k microbatches are one update), updates the masks by the
    schedule, and masks the weights after every update, before checkpoints and averages are made.
    From `end_step` on every selected weight has exactly the zeros of its target:
    `round(size · (1 - sparsity))` numbers are kept. Numbers that are zero already, as in a pruned
    checkpoint, stay zero from the first update on, and each weight's sparsity grows from its own.
    Movement pruning, which chooses by scores, may use them again.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        final_sparsity: final share of zeros of each weight, in [0, 1), where 0 leaves a weight as
            it is; or a dict of a weight's path to that or a `compression.Sensitivity`, which also
            select the weights. Default: None, for an N:M pattern, a schedule of TF-MOT and soft
            movement pruning, which determine it.
        begin_step: the update (>= 0) at which sparsity starts to grow. Default: 0.
        end_step: the update at which the targets are reached, and after which masks are constant.
            Default: 0, pruning at once, before any training.
        schedule: "polynomial" (TF-MOT's cubic growth), "constant" (all at `begin_step`) or a TF-MOT
            `PruningSchedule`, which has its own sparsity, steps and frequency. Default:
            "polynomial".
        frequency: number of updates (>= 1) between two updates of the masks. Default: None, a
            fiftieth of the updates from `begin_step` to `end_step`, at most 100.
        pattern: "unstructured"; "N:M", such as "2:4", N kept of every M inputs of an output from
            `begin_step` on; or "block:IxO", such as "block:1x4", blocks of I inputs x O outputs
            that are kept or pruned as a whole. Default: "unstructured".
        scope: "layer", each weight reaches the target; or "global", all weights together do.
            Default: "layer".
        criterion: "magnitude"; "movement" or a `compression.Movement`; or a
            `compression.Reconstruction` with some data, which prunes at once and corrects the
            remaining weights. Default: "magnitude".
        layers: selects the weights, kernels and embeddings; see `parametrize.select`. Default:
            None, all kernels except those of the heads and of the projection of an image's patches.
        adaptive: a batch `(features, labels)` or a small dataset, on which the sensitivity of each
            weight to pruning by magnitude is measured. Each weight gets its own target, and all
            together reach `final_sparsity`; see `compression.sensitivity`. The callback
            `AdaptiveSparsity` stops the growth when validation gets worse. Default: None, the same
            target for all weights.

    Returns:
        A `PruneReport`.

    Raises:
        ValueError: an argument is out of range or contradicts another, a pattern does not divide a
            weight, a target is below the present sparsity of a weight, no weight is selected, a
            weight is pruned already, or another strategy's scope is entered.
        TypeError: `adaptive` is not data.
        ImportError: TF-MOT is not installed.

    Examples:
        >>> print(ke.prune(model, 0.5, end_step=100))  # doctest: +ELLIPSIS
        prune: ...

    Reference:
        Zhu & Gupta 2017, "To prune, or not to prune"; schedules and masks are those of
        tensorflow-model-optimization. Mishra et al. 2021 for N:M; Sanh et al. 2020 for movement;
        Frantar & Alistarh 2023 for reconstruction.
    """
    shape, movement = pattern_of(pattern), _movement(criterion)
    soft = movement is not None and movement.soft
    _check_scope(scope, shape)
    own = _TfMotSchedule.of(schedule, begin_step, end_step, frequency)
    if own is None:
        make = _schedules(schedule, begin_step, end_step, frequency)
        first, last = begin_step, end_step
    else:
        make, first, last = own.make, own.begin_step, own.end_step
        if final_sparsity is None and shape.sparsity is None and not soft:
            final_sparsity = own.sparsity
    _check_movement(movement, first, last, schedule)
    weights = _selected(model, layers, final_sparsity)
    if isinstance(criterion, Reconstruction):
        criterion.check(weights, shape, scope, first, last, schedule)
    check_weights(weights, "ke.prune", transform=Mask.name)
    for weight in weights:
        shape.check(weight)
    found = None
    if adaptive is not None:
        _check_adaptive(adaptive, final_sparsity, shape, scope, soft, own)
        sparsity: Any = final_sparsity
        found = sensitivity(model, adaptive, sparsity, layers=[w.path for w in weights])
        final_sparsity = found
    targets = _targets(weights, final_sparsity, shape, soft)
    if own is not None and shape.sparsity is None and not soft:
        own.check(targets)
    if scope == "global" and len(set(targets.values())) > 1:
        raise ValueError(
            "scope='global' has one target for all weights together. Received: several in "
            "`final_sparsity`. Use scope='layer'."
        )
    # As in TF-MOT, a target of 0 leaves a weight as it is.
    weights = [weight for weight in weights if targets[weight.path] != 0]
    present = {}
    if movement is None and shape.sparsity is None:
        present = _check_grows(weights, targets, scope)
    by_magnitude = []
    if isinstance(criterion, Reconstruction):
        by_magnitude = criterion.apply(model, weights, targets, shape)
    masks = MaskUpdater(shape, make, scope, movement, last)
    pairs = [
        (weight, Mask(masks, targets[weight.path], present.get(weight.path, 0.0)))
        for weight in weights
    ]
    if pairs:
        attach(model, pairs)
        with model.distribute_strategy.scope():
            masks.begin([mask for _, mask in pairs])
        update_transforms(model)
    paths = tuple(weight.path for weight in by_magnitude)
    return PruneReport(targets, shape.text, first, last, found, paths)


def _movement(criterion):
    if criterion in ("magnitude", "movement"):
        return Movement() if criterion == "movement" else None
    if isinstance(criterion, Movement):
        return criterion
    if isinstance(criterion, Reconstruction):
        return None
    raise ValueError(
        "`criterion` must be 'magnitude', 'movement', a ke.compression.Movement(...) or a "
        f"ke.compression.Reconstruction(batches). Received: {criterion!r}."
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
            "`adaptive` must be data to measure the weights' sensitivity on: a batch (features, "
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


def _selected(model, layers, final_sparsity):
    """Select the weights to prune."""
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


def _targets(weights, final_sparsity: Any, pattern, soft) -> dict[str, Any]:
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
        targets: dict[str, Any] = {w.path: final_sparsity[w.path] for w in weights}
    else:
        targets = dict.fromkeys((weight.path for weight in weights), final_sparsity)
    for path, target in targets.items():
        number = isinstance(target, int | float) and not isinstance(target, bool)
        if not number or not 0 <= target < 1:
            raise ValueError(
                "`final_sparsity` must be at least 0 and below 1: the share of zeros at the end. "
                f"Received: {target!r} for {path!r}."
            )
    return {path: float(target) for path, target in targets.items()}


def _check_grows(weights, targets, scope):
    """Require targets of at least the present sparsity; return `{path: present sparsity}`.

    With scope="global" all weights have the sparsity of all together.
    """
    zeros = {}
    for weight in weights:
        chain = transform_chain(weight)
        value = weight.value if chain is None else chain.value()
        zeros[weight.path] = sparsity_of(value.numpy()) * weight.size
    sizes = {weight.path: weight.size for weight in weights}
    if scope == "global" and weights:
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
    present = {path: float(zeros[path] / size) for path, size in sizes.items()}
    return present if scope == "layer" else {w.path: max(present.values()) for w in weights}


def _schedules(schedule, begin_step, end_step, frequency):
    """Return a function of a target and the present sparsity that makes a TF-MOT schedule."""
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

    def made(target, initial):
        # Soft movement pruning has no target; the schedule then only says when masks are updated.
        target = target or 0.0
        if constant:
            return module.ConstantSparsity(target, begin_step, end_step, every)
        return module.PolynomialDecay(initial, target, begin_step, end_step, 3, every)

    return made


class _TfMotSchedule:
    """A `PruningSchedule` of TF-MOT that the caller made.

    Attributes:
        name: name of its class.
        begin_step: its first update.
        end_step: its last update, or None if it has no end.
        sparsity: its final sparsity.
    """

    def __init__(self, schedule):
        self.schedule, self.name = schedule, type(schedule).__name__
        self.begin_step, end_step = getattr(schedule, "begin_step", 0), _end(schedule)
        self.end_step = end_step
        last = self.begin_step if end_step is None else end_step
        # The sparsity as it was given, and not its float32 value.
        exact = getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
        self.sparsity = float(schedule(tf.constant(last, tf.int64))[1] if exact is None else exact)

    @classmethod
    def of(cls, schedule, begin_step, end_step, frequency):
        """Return the schedule if it is one of TF-MOT, or None."""
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

    def make(self, target, initial):
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
