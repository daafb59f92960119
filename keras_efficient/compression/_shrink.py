"""Structured pruning: a smaller model of the same class."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture import Architecture, describe
from keras_efficient.compression.structured import cuts
from keras_efficient.compression.structured.carry import carry
from keras_efficient.compression.structured.importance import (
    Importance,
    most,
    output_layers,
    reconstructed,
)
from keras_efficient.compression.structured.layer_losses import removal_order
from keras_efficient.compression.structured.recipes import LayersRecipe, recipe_of
from keras_efficient.compression.structured.search import (
    Latency,
    Losses,
    Parameters,
    best_sizes,
    timer,
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
    shrinking = Shrinking(model, data, importance)
    ids = None if vocabulary is None else shrinking.checked_ids(vocabulary)
    if sizes:
        shrinking.check_blocks()
        kept = list(range(len(shrinking.blocks)))
        if "layers" in sizes:
            kept = shrinking.chosen_layers(sizes["layers"])
        numbers = {
            name: _numbers(sizes[name], name, len(kept), shrinking.width(name))
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
    return shrinking.result()


def _searched(model, data, importance, target, hidden, vocabulary, measure) -> ShrunkModel:
    """Make a model that reaches a target, by the sizes with the least loss."""
    (name, most_allowed), fixed = target, {} if hidden is None else {"hidden": hidden}
    shrinking = Shrinking(model, data, importance)
    shrinking.check_blocks()
    losses = Losses(
        model, shrinking.architecture, importance, shrinking.batches or [], shrinking.dataset()
    )
    is_size = name in ("parameters", "bytes")
    # What is fixed is removed first; tokens do not change the latency.
    base = model
    if fixed or (is_size and vocabulary is not None):
        base = _cut(model, None, "magnitude", fixed, vocabulary if is_size else None).model
    architecture = describe(base, sample=shrinking.sample)

    def made(most_cost):
        layers, width = best_sizes(cost, losses, most_cost)
        sizes = {**fixed, "layers": losses.kept(layers), "feed_forward": width}
        return _cut(model, data, importance, sizes, vocabulary)

    if is_size:
        if name == "bytes":
            most_allowed /= weight_bytes(model) / parameters_of(model)
        cost = Parameters(base, architecture)
        return made(most_allowed)
    if measure is None:
        times = timer(shrinking.sample)
    else:

        def times(models):
            return [measure(m) for m in models]

    cost = Latency(base, architecture, times)
    aim = most_allowed if name == "latency_ms" else None
    small, before, after = None, 0.0, 0.0
    for _ in range(ATTEMPTS):
        if aim is None:
            aim = times([model])[0] / most_allowed
        small = made(aim)
        before, after = times([model, small.model])
        wanted = before / most_allowed if name == "speedup" else most_allowed
        if after <= wanted:
            break
        # The prediction was too low by this factor.
        aim *= 0.98 * wanted / after
    assert small is not None
    report = dataclasses.replace(small.report, latency_ms=after, latency_ms_before=before)
    return ShrunkModel(small.model, report)


class Shrinking:
    """A model while it is made smaller, step by step.

    Attributes:
        original: the model at the beginning.
        model: the model now, another one as soon as something was removed.
        architecture: its `Architecture`.
        layers: list of the numbers of the original blocks that are left.
    """

    def __init__(self, model: Model, data: tf.data.Dataset | None, importance: str):
        self.original = self.model = model
        self.data, self.importance = data, importance
        batches = None if data is None else [(*batch, None)[:3] for batch in data]
        self.batches = batches
        self.sample = None if batches is None else batches[0][0]
        recipe_of(model)
        self.architecture = self.described()
        self.layers = list(range(len(self.blocks)))
        self.before = self.sizes()

    def described(self) -> Architecture:
        """Return the architecture of the present model."""
        return describe(self.model, sample=self.sample)

    @property
    def blocks(self):
        """The blocks of the present model."""
        return self.architecture.blocks

    def width(self, size: str) -> int:
        """Return the number of neurons or heads of each block, or the hidden width."""
        found = {cuts.widths(block)[size] for block in self.blocks}
        return min(found)

    def sizes(self) -> dict[str, Any]:
        """Return the present sizes; a tuple where blocks differ."""
        found: dict[str, Any] = {"layers": len(self.blocks)}
        for size in ("feed_forward", "heads", "hidden"):
            values = tuple(cuts.widths(block)[size] for block in self.blocks)
            found[size] = values[0] if len(set(values)) == 1 else values
        rows = {weight.shape[0] for weight in self.architecture.embeddings.token}
        if len(rows) == 1:
            found["vocabulary"] = rows.pop()
        return {name: value for name, value in found.items() if value != ()}

    # --- checks ------------------------------------------------------------------------------

    def check_blocks(self) -> None:
        """Raise a ValueError if a block of the model is not known."""
        if self.blocks and not self.architecture.unknown:
            return
        unknown = self.architecture.unknown.items()
        found = "; ".join(f"{path} ({reason})" for path, reason in unknown)
        raise ValueError(
            "ke.shrink removes parts of Transformer blocks that it knows. Received: "
            f"{type(self.model).__name__} {self.model.name!r}, with "
            f"{found or 'no Transformer block'}. Only its `vocabulary` can be made smaller; see "
            "print(ke.architecture.describe(model))."
        )

    def check_hidden(self, hidden: Any) -> None:
        """Raise a ValueError if the hidden width is not a possible one."""
        size, width = self.width("head_size"), self.width("hidden")
        if not _is_int(hidden) or not 0 < hidden <= width or hidden % size:
            raise ValueError(
                f"`hidden` must be a multiple of the size of a head, {size}, and at most {width}. "
                f"Received: {hidden!r}."
            )

    def checked_ids(self, vocabulary: Any) -> np.ndarray:
        """Return the ids of tokens to keep as an array, or raise a ValueError."""
        ids, rows = np.asarray(vocabulary), self.before.get("vocabulary")
        good = ids.ndim == 1 and ids.size and ids.dtype.kind in "iu"
        if not good or np.any(np.diff(ids) <= 0) or ids[0] < 0 or (rows and ids[-1] >= rows):
            raise ValueError(
                "`vocabulary` must hold increasing ids of tokens"
                + (f" from 0 to {rows - 1:,}" if rows else "")
                + f". Received: {vocabulary!r:.80}. Get them from ke.data.trim_vocabulary."
            )
        preprocessor = getattr(self.model, "preprocessor", None)
        if preprocessor is not None:
            raise ValueError(
                "A preprocessor has a vocabulary of its own. Received: `vocabulary` for "
                f"{self.model.name!r}, which has one. Set `model.preprocessor = None` first, and "
                "use the tokenizer of ke.data.trim_vocabulary."
            )
        return ids

    # --- what to keep ------------------------------------------------------------------------

    def chosen_layers(self, layers: Any) -> list[int]:
        """Return the numbers of the blocks to keep."""
        count = len(self.blocks)
        if isinstance(layers, list | tuple | np.ndarray | range):
            kept = [int(n) for n in layers if _is_int(n) and 0 <= n < count]
            if not kept or len(kept) != len(layers) or sorted(set(kept)) != kept:
                raise ValueError(
                    f"`layers` must be increasing numbers of blocks from 0 to {count - 1}. "
                    f"Received: {layers!r}."
                )
            return kept
        if not _is_int(layers) or not 0 < layers <= count:
            raise ValueError(
                f"`layers` must be the number of blocks to keep, from 1 to {count}, or a list of "
                f"their numbers. Received: {layers!r}."
            )
        if self.batches is None or layers == count:
            return sorted({round(x) for x in np.linspace(0, count - 1, layers)})
        order, _ = removal_order(self.model, self.architecture, self.dataset())
        return sorted(set(range(count)) - set(order[: count - layers]))

    def dataset(self) -> tf.data.Dataset:
        """Return the data as a dataset that the compiled model can be evaluated on."""
        _check_compiled(self.original)
        assert self.data is not None
        return self.data

    def _importance(self) -> Importance:
        method = "magnitude" if self.importance == "reconstruction" else self.importance
        if method == "taylor":
            _check_compiled(self.original)
            if self.model is not self.original:
                self.model.compile(optimizer="sgd", loss=self.original.loss)
        return Importance(self.model, self.architecture, method, self.batches)

    def _chosen(self, part: str, numbers: list[int]):
        """What to keep of each block, and new output kernels as matrices or None."""
        counts = [(cuts.widths(b)[part], n) for b, n in zip(self.blocks, numbers, strict=True)]
        if self.importance == "reconstruction":
            layers = output_layers(self.blocks, part)
            features = [x for x, _, _ in self.batches or ()]
            found = reconstructed(self.model, layers, counts, features)
            return [kept for kept, _ in found], [matrix for _, matrix in found]
        importance = self._importance()
        scores = importance.neurons() if part == "feed_forward" else importance.heads()
        return [most(s, n) for s, n in zip(scores, numbers, strict=True)], None

    # --- steps -------------------------------------------------------------------------------

    def keep_layers(self, kept: list[int]) -> None:
        """Keep some blocks."""
        if len(kept) < len(self.blocks):
            self.layers = [self.layers[n] for n in kept]
            self._replace(cuts.cut_layers(self.model, self.architecture, kept))

    def keep_neurons(self, numbers: list[int]) -> None:
        """Keep some neurons of each block."""
        if numbers != [cuts.widths(block)["feed_forward"] for block in self.blocks]:
            kept, matrices = self._chosen("feed_forward", numbers)
            self._replace(cuts.cut_feed_forward(self.model, self.architecture, kept))
            self._correct("feed_forward", matrices)

    def keep_heads(self, numbers: list[int]) -> None:
        """Keep some heads of each block."""
        if numbers != [block.attention.heads for block in self.blocks]:
            kept, matrices = self._chosen("heads", numbers)
            self._replace(cuts.cut_heads(self.model, self.architecture, kept))
            self._correct("heads", matrices)

    def keep_hidden(self, hidden: int) -> None:
        """Keep some hidden units, and as many heads as fit."""
        if hidden == self.width("hidden"):
            return
        number = hidden // self.width("head_size")
        units = most(self._importance().hidden(), hidden)
        heads, matrices = self._chosen("heads", [number] * len(self.blocks))
        self._replace(cuts.cut_hidden(self.model, self.architecture, units, heads))
        self._correct("heads", None if matrices is None else [m[:, units] for m in matrices])

    def keep_tokens(self, ids: np.ndarray) -> None:
        """Keep some tokens."""
        if len(ids) != self.before.get("vocabulary"):
            self._replace(cuts.cut_vocabulary(self.model, self.architecture, ids))

    def _replace(self, model):
        self.model = model
        # The ids of the data may not be those of the new vocabulary.
        self.architecture = self.described()

    def _correct(self, part, matrices):
        """Assign corrected output kernels."""
        for layer, matrix in zip(output_layers(self.blocks, part), matrices or (), strict=False):
            kernel = layer.kernel if hasattr(layer, "kernel") else layer.weight
            kernel.assign(tf.reshape(tf.cast(matrix, kernel.dtype), kernel.shape))

    def result(self) -> ShrunkModel:
        """Return the new model with its report."""
        if self.model is self.original:
            recipe = recipe_of(self.model)
            new = recipe.build({}) if isinstance(recipe, LayersRecipe) else recipe.build()
            carry(self.model, new, lambda weight, axis: None)
            self.model = new
        after = self.sizes()
        report = ShrinkReport(
            tuple(self.layers),
            {name: (before, after[name]) for name, before in self.before.items()},
            *(f(m) for f in (parameters_of, weight_bytes) for m in (self.model, self.original)),
            self.importance,
        )
        return ShrunkModel(self.model, report)


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


def _check_compiled(model):
    if not getattr(model, "compiled", getattr(model, "_is_compiled", False)):
        raise ValueError(
            "What to keep is chosen by the compiled loss. Received: "
            f"{model.name!r}, not compiled. Call model.compile(optimizer, loss) first, or leave "
            "`data` out."
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


def _numbers(size, name, blocks, width) -> list[int]:
    numbers = [size] * blocks if _is_int(size) else size
    good = isinstance(numbers, list | tuple | np.ndarray) and len(numbers) == blocks
    if not good or not all(_is_int(n) and 0 < n <= width for n in numbers):
        raise ValueError(
            f"`{name}` must be a number from 1 to {width:,}, or a list of {blocks}, one for each "
            f"layer that is kept. Received: {size!r}."
        )
    return [int(n) for n in numbers]


def _is_int(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _shown(after):
    return f"{after:,}" if _is_int(after) else ", ".join(map(str, after))
