"""Structured pruning: a smaller model of the same class."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture import describe
from keras_efficient.compression.structured.search import (
    Latency,
    Losses,
    Parameters,
    best_sizes,
    timer,
)
from keras_efficient.compression.structured.shrinking import (
    Shrinking,
    checked_numbers,
    is_int,
)
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._merge import TIES
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

#: How often sizes are chosen anew if the measured latency misses the target.
ATTEMPTS = 3
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
        latency_ms_before: those of the old one, measured in turns with it.
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
            )
        return "\n".join(lines)


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
    measure: Callable[[Model], float] | None = None,
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
            most, the number of blocks and one feed-forward width for all of them are searched: with
            the least sum of the increases of the compiled loss, measured on `data` for each number
            of blocks and for five widths. Default: None.
        bytes: the largest number of bytes of the weights in memory. Default: None.
        speedup: how many times faster than `model` the new one is at least, by `measure`. The
            times of other sizes are predicted from three measured ones, and the result is measured
            again. Default: None.
        latency_ms: the largest time in milliseconds, by `measure`. Default: None.
        measure: function of a model that returns its latency in milliseconds, such as one that
            exports it in the form it will be served in. Default: None, the least of several runs
            of its float32 graph in this process on the first batch of `data`.
        data: a batch `(features, labels)`, with or without sample weights, or a finite
            `tf.data.Dataset` of a few batches. Default: None.
        importance: how neurons, heads and hidden units are chosen. "magnitude": by the norms of
            the weights that write and read them. "taylor": by the change of the compiled loss to
            first order, Σ (Σ w · ∂L/∂w)² over the batches of `data`. "reconstruction": neurons and
            heads one after the other by the least change of the outputs on `data`, for which the
            remaining weights of the output projections are corrected; hidden units by magnitude.
            Default: "magnitude".

    Returns:
        `(model, report)`: the new model, not compiled, and a `ShrinkReport`.

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
                name: checked_numbers(sizes[name], name, len(kept), shrinking.width(name))
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
    (name, most_allowed), fixed = target, {} if hidden is None else {"hidden": hidden}
    shrinking = Shrinking(model, data, importance)
    shrinking.check_blocks()
    if hidden is not None:
        shrinking.check_hidden(hidden)
    if vocabulary is not None:
        shrinking.checked_ids(vocabulary)
    batches = shrinking.batches or []
    losses = Losses(model, shrinking.architecture, importance, batches, shrinking.dataset())
    is_size = name in ("parameters", "bytes")
    # What is fixed is removed first; tokens do not change the latency.
    fewer_ids = vocabulary if is_size else None
    base, sample = model, shrinking.sample if fewer_ids is None else None
    if fixed or fewer_ids is not None:
        base = _cut(model, None, "magnitude", fixed, fewer_ids).model
    architecture = describe(base, sample=sample)
    times = timer(shrinking.sample) if measure is None else _each(measure)
    cost = Parameters(base, architecture) if is_size else Latency(base, architecture, times)
    aim = wanted = most_allowed
    if name == "bytes":
        aim = wanted = most_allowed * parameters_of(model) / weight_bytes(model)
    elif name == "speedup":
        aim = times([model])[0] / most_allowed
    for attempt in range(ATTEMPTS):
        layers, width = best_sizes(cost, losses, aim)
        sizes = {**fixed, "layers": losses.kept(layers), "feed_forward": width}
        small, report = _cut(model, data, importance, sizes, vocabulary)
        if is_size:
            found = report.parameters
        else:
            before, found = times([model, small])
            report = dataclasses.replace(report, latency_ms=found, latency_ms_before=before)
            wanted = before / most_allowed if name == "speedup" else most_allowed
        if found <= wanted or attempt == ATTEMPTS - 1:
            break
        # The prediction was too low by this factor.
        aim *= 0.98 * wanted / found
    return ShrunkModel(small, report)


def _each(measure):
    return lambda models: [float(measure(model)) for model in models]


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
    """The data as a finite dataset of batches."""
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
        return data
    features, *others = data
    features = tuple(features) if isinstance(features, list) else features
    return tf.data.Dataset.from_tensors((features, *others))


def _shown(after):
    return f"{after:,}" if is_int(after) else ", ".join(map(str, after))
