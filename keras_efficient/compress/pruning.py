"""Prune the weights of a model while it trains."""

from dataclasses import dataclass

from keras_efficient.compress.masks import Mask, Masks, Movement, sparsity_of
from keras_efficient.compress.patterns import pattern_of
from keras_efficient.compress.tf_mot import tf_mot
from keras_efficient.parametrize.attaching import attach, chain_of, check_free
from keras_efficient.parametrize.merging import check_strategy
from keras_efficient.parametrize.weights import select, without_head
from keras_efficient.step.upkeep import look_after


@dataclass(frozen=True)
class Pruned:
    """What `prune` set.

    Attributes:
        targets: dict of a weight's path to the sparsity it ends at.
        pattern: str.
        begin_step, end_step: int, the updates at which sparsity starts to grow, and is reached.
    """

    targets: dict
    pattern: str
    begin_step: int
    end_step: int

    def __str__(self):
        low, high = min(self.targets.values()), max(self.targets.values())
        share = f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}"
        when = f"from update {self.begin_step} to {self.end_step}" if self.end_step else "at once"
        return f"prune: {len(self.targets)} weights, {share} zeros, {self.pattern}, {when}"


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
) -> Pruned:
    """Set the least important weights to zero, more and more of them while the model trains.

    Acts from the next `fit` on, before or after `compile`, without a callback: the training step
    counts updates (k microbatches are one), moves the masks by the schedule, and masks the weights
    after every update, before checkpoints and averages see them. From `end_step` on every chosen
    weight has exactly its target's zeros: `round(size · (1 - sparsity))` numbers are kept.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        final_sparsity: float in (0, 1), the share of zeros each weight ends with; or a dict of a
            weight's path to that (`compress.sensitivity` makes one). A pattern "N:M" has its own.
        begin_step: int >= 0, the update at which sparsity starts to grow. Default 0.
        end_step: int, the update at which it is reached, and after which masks stay. 0 (default):
            at once, before any training.
        schedule: "polynomial" (default: TF-MOT's cubic growth), "constant" (all at `begin_step`)
            or a TF-MOT `PruningSchedule` (then `begin_step` and `end_step` are its own).
        frequency: int >= 1, updates between two moves of the masks. Default: 50 moves in all, at
            least every 100 updates.
        pattern: "unstructured" (default); "N:M", as "2:4": N kept of every M inputs of an output;
            "block:IxO", as "block:1x4": blocks of I inputs x O outputs.
        scope: "layer" (default): each weight reaches the target; "global": all together do.
        criterion: "magnitude" (default), "movement" or a `compress.Movement`.
        layers: which weights; see `parametrize.select`. Default: all kernels of Dense, EinsumDense
            and attention layers, without the model's last one (its head).

    Returns:
        A `Pruned`, to print.

    Raises:
        ValueError: an argument out of range, a pattern that does not divide a weight, a target
            below the sparsity a weight has, no such weights, or weights that are pruned already.
        ImportError: TF-MOT is not installed.

    Example:
        >>> print(ke.prune(model, 0.5, end_step=100))  # doctest: +ELLIPSIS
        prune: ...

    Reference:
        Zhu & Gupta 2017, "To prune, or not to prune"; the schedules and masks are those of
        tensorflow-model-optimization. Mishra et al. 2021 for N:M; Sanh et al. 2020 for movement.
    """
    pattern, movement = pattern_of(pattern), _movement(criterion)
    _check_steps(begin_step, end_step, frequency, scope, pattern, movement)
    weights = select(model, layers, verb="ke.prune")
    if layers is None:
        weights = without_head(weights)
    check_strategy(model, "ke.prune")
    targets = _targets(weights, final_sparsity, pattern, movement)
    make, begin_step, end_step = _schedules(schedule, begin_step, end_step, frequency)
    if scope == "global" and len(set(targets.values())) > 1:
        raise ValueError("scope='global' has one target. Received: several in `final_sparsity`.")
    masks = Masks(pattern, make, scope, movement, end_step)
    pairs = [(weight, Mask(masks, targets[weight.path])) for weight in weights]
    check_free(pairs)
    for weight in weights:
        pattern.check(weight)
        _check_grows(weight, targets[weight.path], scope, movement)
    attach(model, pairs)
    with model.distribute_strategy.scope():
        masks.begin([mask for _, mask in pairs])
    look_after(model)
    return Pruned(targets, pattern.text, begin_step, end_step)


def _movement(criterion):
    if criterion in ("magnitude", "movement"):
        return Movement() if criterion == "movement" else None
    if isinstance(criterion, Movement):
        return criterion
    raise ValueError(
        "`criterion` must be 'magnitude', 'movement' or a compress.Movement(...). Received: "
        f"{criterion!r}."
    )


def _check_steps(begin_step, end_step, frequency, scope, pattern, movement):
    if not (0 <= begin_step <= end_step):
        raise ValueError(
            "Sparsity grows from update `begin_step` (at least 0) to `end_step`. Received: "
            f"begin_step={begin_step!r}, end_step={end_step!r}. Give the number of updates of the "
            "training, less some to recover, as `end_step`."
        )
    if frequency is not None and frequency < 1:
        raise ValueError(f"`frequency` must be at least 1 update. Received: {frequency!r}.")
    if scope not in ("layer", "global"):
        raise ValueError(f"`scope` must be 'layer' or 'global'. Received: {scope!r}.")
    if scope == "global" and pattern.text != "unstructured":
        raise ValueError(
            "scope='global' compares single weights. Received: pattern="
            f"{pattern.text!r}. Use scope='layer'."
        )
    if movement is not None and end_step == 0:
        raise ValueError(
            "Movement pruning learns its scores in training. Received: end_step=0, which prunes at "
            "once. Give the update at which the sparsity is to be reached."
        )


def _targets(weights, final_sparsity, pattern, movement):
    soft = movement is not None and movement.soft
    if pattern.sparsity is not None or soft:
        fixed = 0.0 if soft else pattern.sparsity
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
                f"{missing[0]!r}. Choose the weights it has with `layers=`."
            )
        targets = {weight.path: final_sparsity[weight.path] for weight in weights}
    else:
        targets = dict.fromkeys((weight.path for weight in weights), final_sparsity)
    for path, target in targets.items():
        number = isinstance(target, int | float) and not isinstance(target, bool)
        if not number or not 0 < target < 1:
            raise ValueError(
                "`final_sparsity` must be above 0 and below 1: the share of zeros at the end. "
                f"Received: {target!r} for {path!r}."
            )
    return {path: float(target) for path, target in targets.items()}


def _check_grows(weight, target, scope, movement):
    chain = chain_of(weight)
    value = weight.value if chain is None else chain.value()
    now = sparsity_of(value.numpy())
    if (
        movement is None
        and scope == "layer"
        and round(now * weight.size) > round(target * weight.size)
    ):
        raise ValueError(
            "Pruning makes weights sparser. Received: a target of "
            f"{target:.1%} zeros for {weight.path!r}, which has {now:.1%}. Raise `final_sparsity`, "
            "or leave the weight out with `layers=`."
        )


def _schedules(schedule, begin_step, end_step, frequency):
    """A function of a target that gives its TF-MOT schedule; and its first and last update."""
    module = tf_mot("sparsity.keras.pruning_schedule")
    if isinstance(schedule, module.PruningSchedule):
        last = getattr(schedule, "end_step", -1)
        return lambda target: schedule, schedule.begin_step, None if last < 0 else last
    every = frequency or max(1, min(100, (end_step - begin_step) // 50))
    if schedule == "constant" or begin_step == end_step:
        made = lambda target: module.ConstantSparsity(target, begin_step, end_step, every)  # noqa: E731
    elif schedule == "polynomial":
        made = lambda target: module.PolynomialDecay(0.0, target, begin_step, end_step, 3, every)  # noqa: E731
    else:
        raise ValueError(
            "`schedule` must be 'polynomial', 'constant' or a PruningSchedule of "
            f"tensorflow-model-optimization. Received: {schedule!r}."
        )
    return made, begin_step, end_step
