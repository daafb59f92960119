"""Transformer blocks that a model or a layer makes of plain layers, found in one forward pass.

No layer's `call` is the block, or it is the user's own code. So the model runs once, in training
mode with dropout off, and the calls of its layers are recorded. A block is found by values: which
layer reads what another one returned, and which one reads a sum of two. Nothing else may read what
is computed in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._activations import ACTIVATIONS
from keras_efficient.architecture._description import (
    Block,
    BlockInputs,
    FeedForward,
    SelfAttention,
)
from keras_efficient.architecture._layer_class import has_library_call
from keras_efficient.architecture._layer_paths import is_below, is_in, layer_paths
from keras_efficient.architecture._self_attention import KERAS_ATTENTION
from keras_efficient.architecture._verify import TOLERANCE, made_up, run_on_one_replica
from keras_efficient.architecture.recognizers.common import (
    bound_arguments,
    itself,
    keras_added,
    keras_attention,
    reason_not_described,
)
from keras_efficient.flavor import Layer, Model

#: Layers by what they do in a block.
_KINDS = {
    "attention": KERAS_ATTENTION,
    "norm": ("LayerNormalization.call",),
    "dense": ("Dense.call", "EinsumDense.call", "BaseConv.call", "Conv.call"),
    "dropout": ("Dropout.call",),
    "activation": ("Activation.call", "ReLU.call", "LeakyReLU.call", "ELU.call"),
}


class _NotDescribed(Exception):
    """The reason why an attention layer is in no block that can be described."""


def plain_blocks(
    model: Model, sample: Any, known: tuple[Block, ...]
) -> tuple[list[Block], dict[str, str]]:
    """Return the blocks of plain layers, and the reasons why others are not described.

    Args:
        model: a built model.
        sample: features that it accepts, or None to make some up.
        known: blocks that are described already.

    Returns:
        Tuple of the list of `Block`s, and a dict from the path of each attention layer of the
        library outside of all blocks to the reason.
    """
    paths, inside = dict(layer_paths(model)), [block.path for block in known]
    attention = {
        path: layer
        for path, layer in paths.items()
        if _kind(layer) == "attention" and not is_in(path, inside)
    }
    if not attention:
        return [], {}
    try:
        features = made_up(model) if sample is None else sample
        calls = _record(model, tf.nest.map_structure(tf.convert_to_tensor, features))
    except Exception as error:
        reason = str(error).partition(". ")[0]
        return [], dict.fromkeys(attention, f"the model could not be run: {reason}")
    blocks, unknown = [], {}
    for path, layer in attention.items():
        try:
            blocks.append(_block(layer, calls, paths, attention))
        except _NotDescribed as reason:
            unknown[path] = str(reason)
    for block in list(blocks):
        others = {id(layer) for other in blocks if other is not block for layer in other.chain}
        # Blocks may share a Dropout, which has no weights.
        if any(id(layer) in others and _kind(layer) != "dropout" for layer in block.chain):
            blocks.remove(block)
            unknown[block.path] = "it shares layers with another block"
    return blocks, unknown


# --- recording -----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Call:
    """One call of a layer: what it read and returned, as arrays."""

    layer: Layer
    arguments: tuple[tuple, dict]
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    leaf: bool

    @property
    def output(self) -> Any:
        """What it returned; None if that is not one array."""
        return self.outputs[0] if len(self.outputs) == 1 else None


def _record(model, features) -> list[_Call]:
    """The calls of the model's layers on a batch, in the order in which they ended."""
    calls: list[_Call] = []
    flavor = flavors.of(model)
    kept = [(v, tf.identity(v)) for v in flavor.state(model) if not v.trainable]
    try:
        with _recording(model, calls):
            run_on_one_replica(model, lambda: _run(model, features, calls))
    finally:
        for variable, value in kept:
            variable.assign(value)
    return calls


def _run(model, features, calls):
    result = model(features, training=True)
    # The last call is the model's.
    calls.append(_Call(model, ((), {}), [], _arrays(result), False))
    return tf.zeros([])


@contextmanager
def _recording(model, calls) -> Iterator[None]:
    """Record the calls of layers, outermost ones of a kind and those without layers inside."""
    own = {}
    inside = []

    def record(layer):
        plain = vars(layer).get("call")
        own[id(layer)] = (layer, plain)
        plain = layer.call if plain is None else plain
        kind = _kind(layer)
        inner = layer._flatten_layers(recursive=False, include_self=False)
        leaf = kind is not None or next(iter(inner), None) is None

        def call(*args, **kwargs):
            if kind == "dropout":
                given = bound_arguments(layer, args, kwargs)
                result = tf.identity(given["inputs"])
            if inside or _is_other_replica():
                return result if kind == "dropout" else plain(*args, **kwargs)
            inputs = _arrays((args, kwargs))
            if kind != "dropout":
                inside.extend([layer] * leaf)
                try:
                    result = plain(*args, **kwargs)
                finally:
                    inside.clear()
            calls.append(_Call(layer, (args, kwargs), inputs, _arrays(result), leaf))
            return result

        vars(call)["autograph_info__"] = None
        object.__setattr__(layer, "call", call)

    try:
        # What `ke.unpad` and others gave to the model itself does not count.
        own[id(model)] = (model, vars(model).pop("call", None))
        for _, layer in layer_paths(model):
            record(layer)
        yield
    finally:
        for layer, plain in own.values():
            vars(layer).pop("call", None)
            if plain is not None:
                object.__setattr__(layer, "call", plain)


def _is_other_replica():
    context = tf.distribute.get_replica_context()
    number = 0 if context is None else context.replica_id_in_sync_group
    return tf.get_static_value(tf.convert_to_tensor(number)) != 0


def _arrays(nest):
    """The floating-point tensors of two or more axes in a nest, as arrays."""
    nest = dict(nest) if hasattr(nest, "to_tuple") else nest
    return [
        tf.cast(tensor, tf.float32).numpy()
        for tensor in tf.nest.flatten(nest)
        if isinstance(tensor, tf.Tensor)
        and hasattr(tensor, "numpy")
        and tensor.dtype.is_floating
        and len(tensor.shape) > 1
    ]


def _kind(layer: Layer) -> str | None:
    """What a library's layer does in a block; None for others."""
    kind = next((kind for kind, calls in _KINDS.items() if has_library_call(layer, *calls)), None)
    if kind == "dense" and not _is_dense(layer):
        return None
    return kind


def _is_dense(layer):
    """Whether a layer multiplies each token by one matrix."""
    if hasattr(layer, "kernel_size"):
        plain = layer.kernel_size == (1,) and layer.strides == (1,) and layer.groups == 1
        return plain and layer.data_format == "channels_last"
    kernel = getattr(layer, "kernel", None)
    return kernel is not None and len(kernel.shape) == 2


# --- a block -------------------------------------------------------------------------------------

#: Activations that a user's own code may call.
_FUNCTIONS = (*ACTIVATIONS.values(), tf.nn.silu, tf.nn.tanh)


@dataclass(frozen=True)
class _Found:
    """The layers of one pass through a block, and the indices of their first and last call."""

    chain: tuple[Layer, ...]
    attention_norm: Layer
    attention_dropout: Layer | None
    feed_forward: FeedForward
    feed_forward_norm: Layer
    feed_forward_dropout: Layer | None
    norm_first: bool
    causal: bool
    start: int
    end: int

    def is_like(self, other):
        same = (self.norm_first, self.causal) == (other.norm_first, other.causal)
        return same and list(map(id, self.chain)) == list(map(id, other.chain))


def _block(layer, calls, paths, attention) -> Block:
    described = keras_attention(layer)
    if isinstance(described, str):
        raise _NotDescribed(described)
    starts = [number for number, call in enumerate(calls) if call.layer is layer]
    if not starts:
        raise _NotDescribed("it is not computed")
    found, *again = [_Walk(calls, start).block() for start in starts]
    if not all(found.is_like(other) for other in again):
        raise _NotDescribed("its block is not the same each time")
    if any(a.end > b.start for a, b in zip([found, *again], again, strict=False)):
        raise _NotDescribed("its layers compute for several inputs in turns")
    described = replace(described, causal=found.causal)
    forward = found.feed_forward
    dense = (described.query, described.key, described.value, described.output)
    reason = reason_not_described(
        (found.attention_norm, found.feed_forward_norm),
        (*dense, forward.intermediate, forward.output),
    )
    if reason:
        raise _NotDescribed(reason)
    return Block(
        path=_path(found.chain, paths, attention),
        layer=layer,
        attention=described,
        attention_norm=found.attention_norm,
        feed_forward=forward,
        feed_forward_norm=found.feed_forward_norm,
        attention_dropout=found.attention_dropout,
        feed_forward_dropout=found.feed_forward_dropout,
        norm_first=found.norm_first,
        # The norm before the attention computes its own outputs, too.
        inner=(layer, found.attention_norm) if found.norm_first else (layer,),
        inputs=partial(_inputs, layer, described),
        outputs=itself,
        chain=found.chain,
    )


def _path(chain, paths, attention):
    """The path of the layer that holds the block and no other one, or else of its attention."""
    path = {id(layer): path for path, layer in paths.items()}
    inside = [path[id(layer)] for layer in chain]
    own = next(p for p, layer in attention.items() if any(layer is c for c in chain))
    for outer in paths:
        others = any(is_below(other, outer) for other in attention if other != own)
        if all(is_below(p, outer) for p in inside) and not others:
            return outer
    return own


class _Walk:
    """The way from a call of an attention layer to the end of its block.

    Args:
        calls: the calls of all layers.
        start: index of the attention's.
    """

    def __init__(self, calls: list[_Call], start: int):
        self.calls, self.start, self.at = calls, start, start
        self.tolerance = TOLERANCE.get(str(calls[start].layer.compute_dtype), 0.0)
        self.chain: list[Layer] = [calls[start].layer]

    def block(self) -> _Found:
        """Return the block's layers, or raise `_NotDescribed`."""
        call = self.calls[self.start]
        given = self._arguments(call)
        others = [x for name in ("value", "key") if (x := given.get(name)) is not None]
        if not all(self._same(x, call.inputs[0]) for x in _arrays(others)):
            raise _NotDescribed("it attends to other tokens than its own")
        attended, query = call.output, call.inputs[0]
        if attended is None or attended.shape != query.shape or len(query.shape) != 3:
            raise _NotDescribed("it returns something else than new hidden states")
        dropout = self._take("dropout", attended)
        before = self._norm_before(query)
        norm, total = self._take("norm", query + attended), query + attended
        norm_first = norm is None
        if norm_first and before is not None:
            total = before.inputs[0] + attended
            norm = self._take("norm", total)
        if norm is None:
            raise _NotDescribed("no norm reads the sum of its inputs and its outputs")
        intermediate = self._take("dense", norm.output)
        if intermediate is None:
            raise _NotDescribed("no dense layer follows its norm")
        value, activation = self._activation(intermediate.output)
        inner_dropout = self._take("dropout", value)
        output = self._take("dense", value)
        if output is None or output.output.shape != query.shape:
            raise _NotDescribed("there are no two dense layers after it")
        last_dropout = self._take("dropout", output.output)
        result = (total if norm_first else norm.output) + output.output
        last_norm = None if norm_first else self._take("norm", result)
        if not self._appears(result) if norm_first else last_norm is None:
            raise _NotDescribed("no residual connection is around its dense layers")

        self._check_read(attended, dropout, results=[total])
        self._check_read(total, norm, results=[result] if norm_first else [])
        self._check_read(norm.output, intermediate, results=[] if norm_first else [result])
        between = [c for c in (activation, inner_dropout, output) if isinstance(c, _Call)]
        self._check_read(intermediate.output, *between, results=[value])
        self._check_read(value, *between)
        self._check_read(output.output, last_dropout, results=[result])
        if norm_first:
            self.chain.insert(0, before.layer)  # pyright: ignore[reportOptionalMemberAccess]
        return _Found(
            chain=tuple(self.chain),
            attention_norm=self.chain[0] if norm_first else norm.layer,
            attention_dropout=_layer(dropout),
            feed_forward=FeedForward(
                intermediate.layer,
                output.layer,
                activation.layer if isinstance(activation, _Call) else activation,
                _layer(inner_dropout),
            ),
            feed_forward_norm=norm.layer if norm_first else last_norm.layer,  # pyright: ignore[reportOptionalMemberAccess]
            feed_forward_dropout=_layer(last_dropout),
            norm_first=norm_first,
            causal=bool(given["use_causal_mask"]),
            start=self.start if before is None or not norm_first else self.calls.index(before),
            end=self.at,
        )

    def _arguments(self, call):
        given = bound_arguments(call.layer, *call.arguments)
        if given.get("training") is not None and not given["training"]:
            raise _NotDescribed(f"its layer {call.layer.name!r} never drops anything")
        return given

    def _same(self, x, y):
        """Whether two arrays agree up to rounding."""
        if x is None or y is None or x.shape != y.shape:
            return False
        return float(np.max(np.abs(x - y))) <= self.tolerance * float(np.max(np.abs(y)))

    def _find(self, kind, value):
        """The next call of a layer of a kind that reads a value, or None."""
        for call in self.calls[self.at + 1 :]:
            if _kind(call.layer) == kind and call.inputs and self._same(call.inputs[0], value):
                return call
        return None

    def _take(self, kind, value):
        """Walk on to the next such call, if there is one, and return it."""
        found = self._find(kind, value)
        if found is not None:
            self.at = self.calls.index(found)
            self.chain.append(found.layer)
            if kind == "dropout":
                self._arguments(found)
        return found

    def _norm_before(self, query):
        """The last call of a norm before the attention that returned its queries, or None."""
        for call in reversed(self.calls[: self.start]):
            if _kind(call.layer) == "norm" and self._same(call.output, query):
                return call
        return None

    def _activation(self, value):
        """The value after an activation, and the activation: a call, a function or None."""
        if (found := self._take("activation", value)) is not None:
            return found.output, found
        for function in (None, *_FUNCTIONS):
            after = value if function is None else np.asarray(function(tf.constant(value)))
            if self._find("dropout", after) or self._find("dense", after):
                return after, function
        raise _NotDescribed("there are no two dense layers after it")

    def _check_read(self, value, *by, results=()):
        """Check that only certain calls read a value, or operations with certain results."""
        for call in self.calls[self.start + 1 :]:
            if not call.leaf or not any(self._same(x, value) for x in call.inputs):
                continue
            known = any(call is other for other in by)
            if not known and not any(self._same(call.output, result) for result in results):
                raise _NotDescribed(f"the layer {call.layer.name!r} reads what it computes inside")

    def _appears(self, value):
        """Whether a value, or that of its first tokens, is read or returned later."""
        later = self.calls[self.at + 1 :]
        found = [array for call in later for array in (*call.inputs, *call.outputs)]
        return any(self._same(x, value) or self._same(x, value[:, 0]) for x in found)


def _layer(call):
    return None if call is None else call.layer


# --- arguments -----------------------------------------------------------------------------------


def _inputs(layer: Layer, attention: SelfAttention, args, kwargs) -> BlockInputs | None:
    """What the library's attention layer computes with; its queries are `hidden`."""
    given = bound_arguments(layer, args, kwargs)
    query, value, key = given["query"], given["value"], given["key"]
    if value is not query or not (key is None or key is query):
        return None
    if given["return_attention_scores"] or bool(given["use_causal_mask"]) != attention.causal:
        return None
    queries = getattr(query, "_keras_mask", None)
    # Keras 3 passes the mask that comes with a tensor as an argument, tf_keras does not.
    masks = [given["value_mask"], given["key_mask"]] if "value_mask" in given else [queries]
    masks = list({id(mask): mask for mask in masks if mask is not None}.values())
    if queries is not None and not masks:
        return None
    mask = given["attention_mask"]
    if mask is not None:
        # The same keys for all queries: [batch, 1, keys] or [batch, 1, 1, keys].
        if len(mask.shape) not in (3, 4) or any(n != 1 for n in mask.shape[1:-1]):
            return None
        masks.append(mask)
    if len(masks) == 1:
        return BlockInputs(query, masks[0], _added, given["training"], queries is not None)
    mask = None
    for other in masks:
        keys = tf.cast(_keys(other), tf.bool)
        mask = keys if mask is None else mask & keys
    return BlockInputs(query, mask, _added, given["training"], queries is not None)


def _keys(mask):
    return mask if len(mask.shape) == 2 else tf.reshape(mask, [tf.shape(mask)[0], -1])


def _added(mask):
    return keras_added(_keys(mask))
