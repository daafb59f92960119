"""Structured pruning: a smaller model of the same class."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture import describe
from keras_efficient.compression.structured.costs import Latency, Parameters, bytes_of
from keras_efficient.compression.structured.losses import Losses
from keras_efficient.compression.structured.search import Choice, best_sizes, cheapest
from keras_efficient.compression.structured.shrinking import (
    Shrinking,
    checked_numbers,
    is_int,
)
from keras_efficient.compression.structured.space import SearchSpace, search_space
from keras_efficient.compression.structured.timer import times_in_process
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._merge import TIES
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

#: How many results are measured, if the latency misses the target or is far below it.
ATTEMPTS = 3
#: A latency of at least this part of the target uses it well enough.
USED = 0.9
METHODS = ("magnitude", "taylor", "reconstruction")


@dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` removed; prints as a few lines.

    Attributes:
        layers: tuple of the numbers of the blocks that were kept.
        sizes: dict of a size ("layers", "heads", "feed_forward", "hidden", "vocabulary") to a tuple
            `(before, after)`. Where blocks differ, `after` is a tuple of a number per block.
        parameters: number of parameters of the new model.
        parameters_before: that of the old one.
        bytes: bytes of the new model's weights in memory.
        bytes_before: those of the old one.
        importance: the method by which neurons, heads and hidden units were chosen.
        latency_ms: measured milliseconds of the new model, if the target was a time; else None.
        latency_ms_before: those of the old one, or of the baseline of `measure`, measured in turns
            with it.
        latency_of: what was measured, such as "int8 SavedModel, 8 x 64 tokens"; else "".
    """

    layers: tuple[int, ...]
    sizes: dict[str, tuple[Any, Any]]
    parameters: int
    parameters_before: int
    bytes: int
    bytes_before: int
    importance: str
    latency_ms: float | None = None
    latency_ms_before: float | None = None
    latency_of: str = ""

    def __str__(self):
        ratio = self.parameters_before / self.parameters
        lines = [
            f"shrink: {self.parameters:,} of {self.parameters_before:,} parameters "
            f"({ratio:.1f} times fewer), {self.bytes / 2**20:,.1f} of "
            f"{self.bytes_before / 2**20:,.1f} MiB"
        ]
        for size, (before, after) in self.sizes.items():
            if before != after:
                kept = f": {', '.join(map(str, self.layers))}" if size == "layers" else ""
                lines.append(f"  {size}: {_shown(after)} of {before:,}{kept}")
        if self.latency_ms is not None and self.latency_ms_before is not None:
            lines.append(
                f"  latency: {self.latency_ms:.1f} of {self.latency_ms_before:.1f} ms "
                f"({self.latency_ms_before / self.latency_ms:.1f} times faster)"
                + (f", {self.latency_of}" if self.latency_of else "")
            )
        return "\n".join(lines)


class _ComparesModels(Protocol):
    """What `ke.bench.ExportLatency` is: a latency that is measured for several models in turns."""

    def compare(
        self, model: Model, others: Sequence[Model], sample: Any
    ) -> tuple[float, list[float]]:
        """Return the milliseconds of the baseline of a model, and those of other models."""
        ...


class ShrunkModel(NamedTuple):
    """Result of `shrink`, usually unpacked: `small, report = ke.shrink(...)`.

    Attributes:
        model: the new model, not compiled.
        report: a `ShrinkReport`.
    """

    model: Model
    report: ShrinkReport


def shrink(
    model: Model,
    *,
    layers: int | Sequence[int] | None = None,
    feed_forward: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    hidden: int | None = None,
    vocabulary: Any = None,
    parameters: int | None = None,
    bytes: int | None = None,
    speedup: float | None = None,
    latency_ms: float | None = None,
    measure: Callable[[Model], float] | _ComparesModels | None = None,
    data: Any = None,
    importance: str = "magnitude",
) -> ShrunkModel:
    """Make a smaller model of the same class: fewer layers, neurons, heads, units and tokens.

    The new model is a plain one with the weights that remain. It is saved, loaded, exported,
    trained, quantized and given LoRA like any other. `model` itself does not change. A model from
    which nothing is removed returns the same numbers; others need some training, best by
    distillation.

    What can be changed depends on the class. KerasHub, Hugging Face and Model Garden have one
    option for each size, so all layers have one width, and heads go together with hidden units:
    `hidden` keeps the size of the heads. In functional models of plain layers, `feed_forward` and
    `heads` may differ between layers, and the hidden width cannot be changed.

    Args:
        model: a built Keras 3 or tf_keras model with blocks that `ke.architecture.describe` knows,
            of KerasHub, Hugging Face or Model Garden, or a functional model.
        layers: number of Transformer blocks to keep, or a list of their numbers, from 0. With
            `data`, a number of blocks is reached by removing one after the other, always the one
            without which the compiled loss is least; without, they are evenly spaced. Default:
            None, all.
        feed_forward: number of neurons to keep in the feed-forward part of each block, or a list
            of a number per block that is kept. Default: None, all.
        heads: number of attention heads to keep in each block, or a list. Default: None, all.
        hidden: hidden width, a multiple of the size of a head. Default: None, as it is.
        vocabulary: int array of the ids of the tokens to keep, increasing, from
            `ke.data.trim_vocabulary`, whose tokenizer belongs to the new model. Default: None, all.
        parameters: the largest number of parameters. For this and the next three targets, one at
            most, sizes are searched: those with the least sum of the increases of the compiled
            loss, each measured on `data`. For KerasHub, Hugging Face and Model Garden these are the
            number of blocks, one feed-forward width and the hidden width; for functional models of
            plain layers, the number of blocks, and neurons and heads of each. Default: None.
        bytes: the largest number of bytes of the weights in memory. Default: None.
        speedup: how many times faster than `model` the new one is at least, by `measure`. The
            times of other sizes are predicted from a few measured ones, and the result is measured
            again. Default: None.
        latency_ms: the largest time in milliseconds, by `measure`. Default: None.
        measure: `ke.bench.ExportLatency`, which measures models in the form they will be served in;
            or a function of a model that returns its latency in milliseconds. Default: None, the
            least of several runs of its float32 graph in this process on the first batch of `data`.
        data: a batch `(features, labels)`, with or without sample weights, or a finite
            `tf.data.Dataset` of a few batches, which are kept in memory. Default: None.
        importance: how neurons, heads and hidden units are chosen. "magnitude": by the norms of
            the weights that write and read them. "taylor": by the change of the compiled loss to
            first order, Σ (Σ w · ∂L/∂w)² over the batches of `data`. "reconstruction": neurons and
            heads one after the other by the least change of the outputs on `data`, for which the
            remaining weights of the output projections are corrected; hidden units by magnitude.
            Default: "magnitude".

    Returns:
        `(model, report)`: the new model, not compiled, and a `ShrinkReport`.

    Warns:
        UserWarning: the latency of the result misses the target after three attempts.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: no size and no target is given, several targets, one that cannot be reached, or
            a size that the model does not have or its class cannot express; the architecture is
            not known; the model is not built, or has transforms; data are missing, or the model is
            not compiled where the loss is needed.

    Examples:
        >>> import keras_hub
        >>> backbone = keras_hub.models.BertBackbone(
        ...     vocabulary_size=100, num_layers=4, num_heads=2, hidden_dim=8, intermediate_dim=16
        ... )
        >>> small, report = ke.shrink(backbone, layers=2, feed_forward=8)
        >>> small.num_layers, small.intermediate_dim
        (2, 8)

    Reference:
        Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning"; Kurtic, Frantar &
        Alistarh 2023, "ZipLM"; Sajjad et al. 2023, "On the Effect of Dropping Layers of
        Pre-trained Transformer Models".
    """
    check_model(model, "ke.shrink", changes=False)
    _check_plain(model)
    if importance not in METHODS:
        raise ValueError(f"`importance` must be one of {METHODS}. Received: {importance!r}.")
    data = _dataset(data)
    if importance != "magnitude" and data is None:
        raise ValueError(
            f"importance={importance!r} is measured on data. Received: data=None. Give a batch "
            "(features, labels), or a dataset of a few."
        )
    target = _target(parameters=parameters, bytes=bytes, speedup=speedup, latency_ms=latency_ms)
    sizes = {"layers": layers, "feed_forward": feed_forward, "heads": heads, "hidden": hidden}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if target is not None:
        _check_target(target, sizes, data)
        return _searched(model, data, importance, target, hidden, vocabulary, measure)
    if not sizes and vocabulary is None:
        raise ValueError(
            "ke.shrink needs to know what to make smaller. Received: no size. Give `layers`, "
            "`feed_forward`, `heads`, `hidden` or `vocabulary`, or a target such as `parameters`."
        )
    return _cut(model, data, importance, sizes, vocabulary)


def _cut(model, data, importance, sizes, vocabulary) -> ShrunkModel:
    """Make a model of given sizes; all of them are checked before the first step."""
    with model.distribute_strategy.scope():
        shrinking = Shrinking(model, data, importance)
        ids = None if vocabulary is None else shrinking.checked_ids(vocabulary)
        if sizes:
            shrinking.check_blocks()
            kept = list(range(len(shrinking.blocks)))
            if "layers" in sizes:
                kept = shrinking.chosen_layers(sizes["layers"])
            numbers = {
                name: checked_numbers(sizes[name], name, [shrinking.units(name, n) for n in kept])
                for name in ("feed_forward", "heads")
                if name in sizes
            }
            if "hidden" in sizes:
                shrinking.check_hidden(sizes["hidden"])
            shrinking.keep_layers(kept)
            if "feed_forward" in numbers:
                shrinking.keep_neurons(numbers["feed_forward"])
            if "heads" in numbers:
                shrinking.keep_heads(numbers["heads"])
            if "hidden" in sizes:
                shrinking.keep_hidden(sizes["hidden"])
        if ids is not None:
            shrinking.keep_tokens(ids)
        shrinking.copy()
        return _result(shrinking)


def _searched(model, data, importance, target, hidden, vocabulary, measure) -> ShrunkModel:
    """Make a model that reaches a target, by the sizes with the least loss."""
    shrinking = Shrinking(model, data, importance)
    shrinking.check_blocks()
    shrinking.dataset()
    if hidden is not None:
        shrinking.check_hidden(hidden)
    ids = None if vocabulary is None else shrinking.checked_ids(vocabulary)
    space, width = search_space(model, shrinking.architecture, hidden), shrinking.width("hidden")
    name, most_allowed = target
    if name in ("parameters", "bytes"):
        cost, wanted = _size(shrinking, space, name, ids), most_allowed
        _check_reachable(cost, space, name, most_allowed, wanted)
        choice = best_sizes(cost, Losses(shrinking, space), space, wanted)
        assert choice is not None
        return _cut(model, data, importance, _sizes(choice, space, width), vocabulary)
    compare = _comparison(measure, _known_tokens(shrinking.sample, ids))
    cost = Latency(model, shrinking.architecture, space, compare)
    aim = cost.baseline / most_allowed if name == "speedup" else most_allowed
    _check_reachable(cost, space, name, most_allowed, aim)
    losses = Losses(shrinking, space)
    tried: list[dict] = []
    results: list[tuple[float, ShrunkModel]] = []
    while len(results) < ATTEMPTS:
        choice = best_sizes(cost, losses, space, aim)
        if choice is None or (sizes := _sizes(choice, space, width)) in tried:
            break
        tried.append(sizes)
        small, report = _cut(model, data, importance, sizes, vocabulary)
        before, (found,) = compare(model, [small])
        report = dataclasses.replace(
            report,
            latency_ms=found,
            latency_ms_before=before,
            latency_of=str(measure) if hasattr(measure, "compare") else "",
        )
        used = found / (before / most_allowed if name == "speedup" else most_allowed)
        results.append((used, ShrunkModel(small, report)))
        if USED <= used <= 1:
            break
        # The prediction was wrong by this factor.
        aim *= 0.98 / used
    # The slowest that is fast enough, else the fastest.
    used, result = min(results, key=lambda r: (r[0] > 1, abs(1 - r[0])))
    if used > 1:
        warnings.warn(
            f"ke.shrink must reach `{name}`={most_allowed:g}. Received: a model that needs "
            f"{used:.2f} times as long, after {len(results)} attempts. Set a more ambitious "
            "target, or measure on a machine that does nothing else.",
            stacklevel=3,
        )
    return result


def _size(shrinking, space, name, ids) -> Parameters:
    """The cost of sizes where tokens that are not kept cost nothing."""
    base, architecture = shrinking.model, shrinking.architecture
    if ids is not None:
        base = _cut(base, None, "magnitude", {}, ids).model
        architecture = describe(base)
    return Parameters(base, architecture, space, bytes_of if name == "bytes" else None)


def _sizes(choice: Choice, space: SearchSpace, width: int) -> dict[str, Any]:
    """The sizes to cut to, of a model of a hidden width."""
    sizes: dict[str, Any] = {part: list(getattr(choice, part)) for part in space.parts}
    if space.layers:
        sizes["layers"] = list(choice.layers)
    if choice.hidden != width:
        sizes["hidden"] = choice.hidden
    return sizes


def _comparison(measure, sample) -> Callable[[Model, Sequence[Model]], tuple[float, list[float]]]:
    """A function of a model and others that returns the milliseconds of both."""
    if hasattr(measure, "compare"):
        return lambda model, others: measure.compare(model, others, (sample,))

    def compare(model, others):
        models = [model, *(other for other in others if other is not model)]
        if measure is None:
            times = times_in_process(models, sample)
        else:
            times = [float(measure(each)) for each in models]
        by_model = dict(zip(map(id, models), times, strict=True))
        return times[0], [by_model[id(other)] for other in others]

    return compare


def _known_tokens(features, ids):
    """Features without ids of tokens that a smaller vocabulary does not have."""
    if ids is None:
        return features
    last = len(ids) - 1
    return tf.nest.map_structure(
        lambda t: tf.minimum(t, tf.cast(last, t.dtype)) if t.dtype.is_integer else t, features
    )


def _check_reachable(cost, space, name, most_allowed, aim):
    least = cheapest(cost, space)
    if least.cost <= aim:
        return
    reached = {
        "parameters": f"{least.cost:,.0f} parameters",
        "bytes": f"{least.cost:,.0f} bytes",
        "latency_ms": f"{least.cost:.3g} ms",
    }
    if name == "speedup":
        reached[name] = f"{aim * most_allowed / least.cost:.3g} times faster"
    found = [f"{len(least.layers)} of {space.blocks} layers"]
    words = {"feed_forward": "neurons", "heads": "heads"}
    found += [f"{getattr(least, part)[0]} {words[part]} each" for part in space.parts]
    found += [f"a hidden width of {least.hidden}"]
    more = ["a less ambitious target"]
    if len(space.hidden) == 1:
        more.append("a smaller `hidden`, if the model's class has it")
    if name in ("parameters", "bytes"):
        more.append("a smaller `vocabulary`")
    raise ValueError(
        f"A target must be one that smaller sizes reach. Received: `{name}`={most_allowed:g}. The "
        f"least is {reached[name]}, with {', '.join(found[:-1])} and {found[-1]}. Set "
        f"{', or '.join(more)}."
    )


def _result(shrinking) -> ShrunkModel:
    after = shrinking.sizes()
    models = shrinking.model, shrinking.original
    report = ShrinkReport(
        layers=tuple(shrinking.layers),
        sizes={name: (before, after[name]) for name, before in shrinking.before.items()},
        parameters=parameters_of(models[0]),
        parameters_before=parameters_of(models[1]),
        bytes=weight_bytes(models[0]),
        bytes_before=weight_bytes(models[1]),
        importance=shrinking.importance,
    )
    return ShrunkModel(shrinking.model, report)


def parameters_of(model: Model) -> int:
    """Return the number of parameters of a model."""
    return sum(int(np.prod(v.shape)) for v in flavors.of(model).weights(model))


def weight_bytes(model: Model) -> int:
    """Return the bytes of a model's weights in memory."""
    weights = flavors.of(model).weights(model)
    return sum(int(np.prod(v.shape)) * v.dtype.size for v in weights)


def _target(**targets) -> tuple[str, float] | None:
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"ke.shrink takes one target. Received: {', '.join(given)}. Give the one that is "
            "hardest to reach."
        )
    for name, value in given.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        least = 1 if name == "speedup" else 0
        if not number or not least < value < float("inf"):
            raise ValueError(f"`{name}` must be a number above {least}. Received: {value!r}.")
        return name, float(value)
    return None


def _check_target(target, sizes, data):
    odd = [name for name in sizes if name != "hidden"]
    if odd:
        raise ValueError(
            f"For a target the sizes are searched. Received: `{target[0]}` with "
            f"{', '.join(odd)}. Give either of them; `hidden` and `vocabulary` may be fixed."
        )
    if data is None:
        raise ValueError(
            f"The sizes for a target are chosen by the loss on data. Received: `{target[0]}` with "
            "data=None. Give a batch (features, labels), or a dataset of a few."
        )


def _check_plain(model):
    inside = [model, *model._flatten_layers()]
    tied = any(vars(layer).get(TIES) for layer in inside)
    if tied or parametrized_layers(model):
        raise ValueError(
            "ke.shrink copies plain weights. Received: "
            f"{model.name!r}, {'with shared weights' if tied else 'which has transforms'}. Fold "
            "them with ke.merge(model) first, and apply them to the smaller model again."
        )


def _dataset(data) -> tf.data.Dataset | None:
    """The data as a finite dataset of batches, the same in every pass."""
    if data is None:
        return None
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("`data` must end. Received: an endless dataset. Give dataset.take(8).")
        spec = data.element_spec
    else:
        spec = data
    if not isinstance(spec, tuple | list) or len(spec) not in (2, 3):
        raise ValueError(
            "`data` must be a batch (features, labels), with sample weights or not, or a "
            f"tf.data.Dataset of such. Received: {type(data).__name__}. Give next(iter(dataset))."
        )
    if isinstance(data, tf.data.Dataset):
        # A dataset that is shuffled anew in each pass would compare losses of different batches.
        return data.cache()
    features, *others = data
    features = tuple(features) if isinstance(features, list) else features
    return tf.data.Dataset.from_tensors((features, *others))


def _shown(after):
    return f"{after:,}" if is_int(after) else ", ".join(map(str, after))
