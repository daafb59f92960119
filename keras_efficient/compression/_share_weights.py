"""Weight sharing between the layers of a model."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.architecture._attention_layers import key_value_projections
from keras_efficient.architecture._blocks import transformer_blocks
from keras_efficient.architecture._embeddings import embeddings
from keras_efficient.architecture._heads import output_layer_kernels
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._weights import all_weights
from keras_efficient.compression._weight_tying import Tie, TransposedTie
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model, check_permanent
from keras_efficient.parametrize._merge import TIES
from keras_efficient.parametrize._parametrized_layer import parametrized_layer
from keras_efficient.parametrize._select import matcher


@dataclass(frozen=True)
class SharingReport:
    """The result of `share_weights`; prints as one line.

    Attributes:
        what: "layers", "key_value" or "embeddings".
        tied: dict of the path of a weight that was removed to the path of the one it was replaced
            by.
        parameters: number of parameters of the model now.
        parameters_before: number of parameters before.
    """

    what: str
    tied: dict[str, str]
    parameters: int
    parameters_before: int
    _model: Any = field(repr=False, compare=False, default=None)
    _ties: tuple = field(repr=False, compare=False, default=())

    def __str__(self):
        saved = 1 - self.parameters / self.parameters_before
        return (
            f"share_weights: {self.what}, {len(self.tied)} weights replaced; "
            f"{self.parameters:,} of {self.parameters_before:,} parameters ({saved:.1%} fewer)"
        )

    def undo(self) -> None:
        """Give every layer its own weights again, with their present values.

        `ke.merge(model)` does this for all shared weights, after it has merged transforms.

        Raises:
            ValueError: the sharing was undone already, weights of these layers were shared again
                later, or shared weights have transforms.
        """
        if not all(tie in vars(tie.layer).get(TIES, ()) for tie in self._ties):
            raise ValueError(
                "A sharing can be undone once. Received: one that was undone before, or merged."
            )
        latest = max(tie.number for tie in self._ties)
        if any(t.number > latest for tie in self._ties for t in vars(tie.layer)[TIES]):
            raise ValueError(
                "Sharings are undone in reverse order. Received: one whose layers share weights "
                "since later, too. Undo that first, or all by ke.merge(model)."
            )
        check_permanent(self._model, "SharingReport.undo()")
        _check_plain([tie.source for tie in self._ties], "SharingReport.undo()")
        with self._model.distribute_strategy.scope():
            for tie in reversed(self._ties):
                tie.undo()
        flavors.of(self._model).retrace(self._model)


def share_weights(
    model: Model,
    what: str,
    *,
    layers: Any = None,
    groups: int = 1,
    start: str = "first",
) -> SharingReport:
    """Share weights between layers of a model, which then train them together.

    The layers read one variable. `model.weights` contains it once, its gradient is the sum over all
    layers, and an optimizer keeps one state for it. Files of weights still hold a copy for every
    layer, so that plain models can load them, as can models with the same sharing. Share first,
    then prune, cluster, quantize or add low-rank deltas: a transform of a shared weight applies to
    all its layers. Sharing changes what the model computes, so train it afterwards.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        what: what is shared. "layers": Transformer blocks of equal structure share their weights.
            "key_value": in each attention layer the value projection is the key projection.
            "embeddings": an output layer's kernel [dim, vocabulary] is the transpose of the token
            embeddings, the first table [vocabulary, dim].
        layers: selects blocks, attention layers or output layers: a regular expression searched in
            their paths, a layer class or several, a function of a layer, or a list of layers, which
            select the layers inside them too. Default: None, all.
        groups: number of sets of weights (>= 1), for "layers"; each set is shared by consecutive
            blocks. Default: 1.
        start: initial values of shared weights: "first", those of the first block of each group (of
            the key projection, of the embeddings); or "mean", the mean of all. Default: "first".

    Returns:
        A `SharingReport`, whose method `undo()` gives every layer weights of its own again.

    Raises:
        ValueError: there is nothing to share, weights have different shapes or transforms, or an
            argument is out of range.

    Examples:
        >>> import keras
        >>> attention = keras.layers.MultiHeadAttention(2, 4)
        >>> ids = keras.Input((None,), dtype="int32")
        >>> x = keras.layers.Embedding(50, 8)(ids)
        >>> x = keras.layers.GlobalAveragePooling1D()(attention(x, x))
        >>> encoder = keras.Model(ids, keras.layers.Dense(3)(x))
        >>> shared = ke.share_weights(encoder, "key_value")
        >>> print(shared)  # doctest: +ELLIPSIS
        share_weights: key_value, ...
        >>> shared.undo()

    Reference:
        Lan et al. 2020, "ALBERT", for layers; Press & Wolf 2017, "Using the Output Embedding to
        Improve Language Models", for embeddings; Kitaev et al. 2020, "Reformer", for one projection
        as key and value.
    """
    _check(what, groups, start)
    check_model(model, "ke.share_weights")
    pairs = {"layers": _blocks, "key_value": _key_values, "embeddings": _embeddings}[what](
        model, layers, *([groups] if what == "layers" else [])
    )
    # A weight that is shared already occurs once for every layer.
    once = {id(w.variable): (source, w) for source, w in pairs}
    pairs = [(source, w) for source, w in once.values() if source.variable is not w.variable]
    if not pairs:
        raise ValueError(
            f"ke.share_weights needs weights that are not shared already. Received: {what!r} for "
            f"{model.name!r}, where all are. Leave it out, or choose other `layers`."
        )
    _check_plain([weight for pair in pairs for weight in pair], "ke.share_weights")
    before, released = _parameters(model), {}
    tied = {weight.path: source.path for source, weight in pairs}
    if start == "mean":
        _average(pairs, what)
    kind = TransposedTie if what == "embeddings" else Tie
    with model.distribute_strategy.scope():
        ties = tuple(
            kind(source, weight, layer, attribute, released)
            for source, weight in pairs
            for layer, attribute in weight.owners
        )
    flavors.of(model).retrace(model)
    return SharingReport(what, tied, _parameters(model), before, model, ties)


def _check(what, groups, start):
    if what not in ("layers", "key_value", "embeddings"):
        raise ValueError(
            f"`what` must be 'layers', 'key_value' or 'embeddings'. Received: {what!r}."
        )
    if start not in ("first", "mean"):
        raise ValueError(f"`start` must be 'first' or 'mean'. Received: {start!r}.")
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"`groups` must be an int of at least 1. Received: {groups!r}.")
    if groups > 1 and what != "layers":
        raise ValueError(
            f"`groups` says how many sets of weights blocks share. Received: groups={groups} with "
            f"{what!r}. Leave it out."
        )


def _check_plain(weights, caller):
    for weight in weights:
        for layer, _ in weight.owners:
            if parametrized_layer(layer) is not None:
                raise ValueError(
                    f"{caller} acts on plain weights. Received: {weight.path!r}, whose layer has "
                    "transforms or frozen weights. Share before ke.prune, ke.lora and the like, or "
                    "fold them with ke.merge(model)."
                )
            # The regularizers of tf_keras refer to the variable they were created for.
            if getattr(layer, "_callable_losses", None):
                raise ValueError(
                    f"{caller} cannot move a tf_keras regularizer to another variable. Received: "
                    f"{layer.name!r}, which has one. Use an optimizer's weight decay."
                )


def _parameters(model):
    return sum(math.prod(variable.shape) for variable in model.weights)


def _average(pairs, what):
    """Assign to every source the mean of itself and the weights it replaces."""
    members = {}
    for source, weight in pairs:
        others = members.setdefault(id(source.variable), (source, {}))[1]
        value = weight.value.numpy()
        others[id(weight.variable)] = value.T if what == "embeddings" else value
    for source, others in members.values():
        source.value.assign(np.mean([source.value.numpy(), *others.values()], 0))


def _selected(model, found, layers, name):
    """Return the found layers (a dict by path) that `layers` selects, at least one."""
    fits: Any = matcher(model, layers)
    selected = {p: x for p, x in found.items() if fits(SimpleNamespace(path=f"{p}/"))}
    if not selected:
        shown = ", ".join([*found][:8]) or "none"
        raise ValueError(
            f"ke.share_weights needs {name}. Received: layers={layers!r}, which fits none in "
            f"{model.name!r}. There are: {shown}."
        )
    return selected


# Each of these functions yields pairs of a source and a weight that it replaces.


def _blocks(model, layers, groups):
    blocks = _selected(model, transformer_blocks(model), layers, "Transformer blocks")
    weights = _by_owner(model)
    alike = {}
    for path, block in blocks.items():
        parts = _trained(block, weights)
        structure = tuple((type(x).__name__, a, w.shape) for x, a, w in parts)
        alike.setdefault(structure, []).append((path, [w for _, _, w in parts]))
    if layers is not None and len(alike) > 1:
        (first, *_), (other, *_), *_ = alike.values()
        raise ValueError(
            "Blocks that share weights must be of equal structure and shapes. Received: "
            f"{first[0]!r} and {other[0]!r}, which differ. Choose equal ones with `layers=`."
        )
    sets = [members for members in alike.values() if len(members) > groups]
    if not sets:
        most = max(map(len, alike.values()))
        raise ValueError(
            "ke.share_weights needs more Transformer blocks of equal structure than `groups`. "
            f"Received: groups={groups} and {most} such block{'s' * (most > 1)} in {model.name!r}."
        )
    for members in sets:
        for group in np.array_split(np.arange(len(members)), groups):
            first, *others = (members[index][1] for index in group)
            for other in others:
                yield from zip(first, other, strict=True)


def _by_owner(model):
    return {(id(x), a): weight for weight in all_weights(model) for x, a in weight.owners}


def _trained(block, weights):
    """Return `(layer, attribute, Weight)` of a block's weights that train if not frozen."""
    found = []
    for layer in [block, *(inner for _, inner in layer_paths(block))]:
        own = [(a, w) for (x, a), w in weights.items() if x == id(layer)]
        found += [(layer, a, w) for a, w in own if w.value.trainable]
    return found


def _key_values(model, layers):
    found = key_value_projections(model)
    weights = _by_owner(model)
    for path, (key, value) in _selected(model, found, layers, "attention layers").items():
        flavor = flavors.of(model)
        for attribute, variable in flavor.variable_attributes(value).items():
            source = weights.get((id(key), attribute))
            weight = weights[id(value), attribute]
            shape = None if source is None else source.shape
            if shape != tuple(variable.shape):
                raise ValueError(
                    "A value projection can be the key projection if their shapes are equal. "
                    f"Received: {path!r} with a key {attribute} {shape} and a value {attribute} "
                    f"{weight.shape}. Leave it out with `layers=`."
                )
            yield source, weight


def _embeddings(model, layers):
    tables = embeddings(model).token
    found = {weight.layer_path: weight for weight in output_layer_kernels(model)}
    if layers is None:
        shapes = {table.shape[::-1] for table in tables}
        found = {path: w for path, w in found.items() if w.shape in shapes}
    for kernel in _selected(
        model, found, layers, "an output layer as large as the embeddings"
    ).values():
        table = next((t for t in tables if t.shape == kernel.shape[::-1]), None)
        if table is None:
            raise ValueError(
                "An output kernel [dim, vocabulary] can be an embedding table [vocabulary, dim]. "
                f"Received: {kernel.path!r} {kernel.shape}, and tables of the shapes "
                f"{[t.shape for t in tables]}. Choose the output layer with `layers=`."
            )
        yield table, kernel
