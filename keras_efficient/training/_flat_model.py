"""A model whose Transformer blocks compute rows of tokens, and what must hold for it to be used."""

import dataclasses
import functools
import math
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._run_block import has_own_call, is_changed, run_block
from keras_efficient.architecture._token_rows import TokenRows
from keras_efficient.architecture._verify import Comparison
from keras_efficient.flavor import Model
from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._parametrized_layer import parametrized_layer
from keras_efficient.training._remat import recomputed_call
from keras_efficient.training._replicas import on_tpu

_ATTRIBUTE = "_keras_efficient_unpadded"
#: The call of a model that is running, for its blocks.
_CURRENT: ContextVar[Any] = ContextVar("keras_efficient_unpadded_call", default=None)


def unpadded_model(model: Model) -> "FlatModel | None":
    """Return what `ke.unpad` has attached to a model, or None."""
    return vars(model).get(_ATTRIBUTE)


@contextmanager
def padded(model: Model) -> Iterator[None]:
    """Let a model compute padding as before `ke.unpad`, for the time of a block."""
    holder = unpadded_model(model)
    if holder is None:
        yield
        return
    with holder.flavor.untraced(model), holder.off():
        yield


@contextmanager
def whole_last_block(model: Model) -> Iterator[None]:
    """Let a model with `ke.unpad` compute all real tokens in its last block, too."""
    holder = unpadded_model(model)
    if holder is None:
        yield
        return
    with patched(holder, first_token_only=False):
        yield


# --- verification --------------------------------------------------------------------------------


def disagreeing_blocks(
    holder: "FlatModel", compare: Comparison, gradients: bool = True
) -> tuple[dict[str, str], str | None]:
    """Remove the blocks that do not agree with the model from `holder`.

    Returns:
        Dict of the path of each removed block to the reason; and what still differs, or None.
    """
    wrong = {}
    difference = compare.difference(gradients)
    if difference:
        for block in holder.blocks:
            with holder.only(block):
                if reason := compare.difference(gradients):
                    wrong[block.block.path] = f"does not agree with the model: {reason}"
        holder.keep([b for b in holder.blocks if b.block.path not in wrong])
        difference = compare.difference(gradients) if holder.blocks else difference
    return wrong, difference


def reads_padding(holder: "FlatModel", compare: Comparison) -> str | None:
    """Return what differs if the outputs of padding are other numbers, or None."""
    with holder.noise("padding"):
        return compare.difference(gradients=False)


def find_first_token_only(holder: "FlatModel", compare: Comparison, gradients: bool = True) -> None:
    """Let the last block compute only first tokens if nothing else of its output is read."""
    if holder.calls(holder.blocks[-1]) == 1:
        with holder.noise("all but the first token"):
            holder.first_token_only = not compare.difference(gradients=False)
        if holder.first_token_only and compare.difference(gradients):
            holder.first_token_only = False


def leave_out_unused(holder: "FlatModel") -> dict[str, str]:
    """Remove the blocks that the last call did not compute on rows from `holder`.

    Returns:
        Dict of the path of each removed block to the reason.
    """
    unused = [block for block in holder.blocks if not holder.calls(block)]
    holder.keep([block for block in holder.blocks if block not in unused])
    reason = (
        "its call asks for more than hidden states, such as attention scores or a cache, which "
        "`use_cache=False` in a Hugging Face model's config turns off; or has a mask for each query"
    )
    return {block.block.path: reason for block in unused}


# --- the model and its blocks --------------------------------------------------------------------


class FlatModel:
    """Holder of the methods that replace `call` of a model and of its blocks.

    Args:
        model: the model.
        blocks: the `Block`s to compute on rows of tokens.
        compiled: whether XLA may compile the model, in which case it computes padding unless there
            is a number of `rows`.
        rows: number of rows that it computes then, or None.

    Attributes:
        blocks: list of the `FlatBlock`s.
        first_token_only: whether the last block computes the first token of each example only.
        everywhere: whether padding has rows, too.
        whole: as in `TokenRows`.
        masked: whether the blocks receive a mask.
        padding: whether every mask of the last eager call had padding; None if it had no mask.
    """

    def __init__(self, model: Model, blocks: Any, compiled: bool = True, rows: int | None = None):
        self.model, self.flavor = model, flavors.of(model)
        self.rows = rows
        self.compiled, self.everywhere, self.whole, self.padding = compiled, False, False, None
        self.all_blocks = [
            (FlatChain if block.chain else FlatBlock)(self, block) for block in blocks
        ]
        self.blocks = self.all_blocks
        self.first_token_only, self.masked = False, False
        self.filled = None
        self.active, self.warned = True, False
        #: How often each block was computed in the last call of the model, by the block's id.
        self.counts: dict[int, int] = {}

    def install(self):
        plain = self.model.call

        # A method with the signature of the model's own, which the libraries inspect.
        @functools.wraps(getattr(plain, "__func__", plain))
        def call(model, *args, **kwargs):
            # Blocks that compute rows of tokens have no attention scores to return.
            own = self.flavor.converted(self.model, plain)
            if not self.active or kwargs.get("output_attentions"):
                return own(*args, **kwargs)
            return self.run(own, args, kwargs)

        # AutoGraph must not convert this function; `converted` converts the model's own.
        vars(call)["autograph_info__"] = None
        self.own = vars(self.model).get("call")
        object.__setattr__(self.model, "call", types.MethodType(call, self.model))
        object.__setattr__(self.model, _ATTRIBUTE, self)
        for block in self.all_blocks:
            block.install()

    def run(self, call, args, kwargs):
        """Return what the model's own `call` returns, computed on rows."""
        with calling(ModelCall(self)):
            return call(*args, **kwargs)

    def uninstall(self):
        # Blocks of plain layers may share one.
        for block in reversed(self.all_blocks):
            block.remove()
        object.__delattr__(self.model, "call")
        object.__delattr__(self.model, _ATTRIBUTE)
        if self.own is not None:
            object.__setattr__(self.model, "call", self.own)

    def remove(self):
        if vars(self.model).get(_ATTRIBUTE) is self:
            self.uninstall()
            self.flavor.retrace(self.model)

    def keep(self, blocks):
        """Compute only these blocks on rows."""
        self.blocks = blocks

    def plain(self, layer, own):
        """The `call` of a layer before `ke.unpad`; `own` is the one that only it had."""
        call = type(layer).call.__get__(layer) if own is None else own
        return self.flavor.converted(layer, call)

    def calls(self, block):
        """How often a block was computed in the last call of the model."""
        return self.counts.get(id(block), 0)

    @property
    def static(self):
        """Whether XLA compiles the model, which takes no shapes that depend on data."""
        return self.compiled and bool(getattr(self.model, "jit_compile", False) or on_tpu())

    def warn_static(self):
        """Say once that XLA keeps the padding."""
        if not self.warned:
            self.warned = True
            remedy = "Pass jit_compile=False to `compile`, or the number of `rows` to ke.unpad."
            if self.rows is not None:
                remedy = (
                    "With `rows`, pass batches of one shape, padded to one length and without a "
                    "smaller last one: use `drop_remainder=True`."
                )
            warnings.warn(
                "XLA compiles fixed shapes, so it computes padding in spite of ke.unpad. Received: "
                f"{self.model.name!r} with jit_compile=True, which Keras 3 also chooses by "
                f"itself, or on a TPU. {remedy}",
                stacklevel=2,
            )

    def off(self):
        """Return a context in which the model computes as before."""
        return patched(self, active=False)

    def on(self):
        """Return a context in which it computes rows of tokens, after `active` was set to False."""
        return patched(self, active=True)

    def only(self, block):
        """Return a context in which one block is computed on rows."""
        return patched(self, blocks=[block])

    def noise(self, where):
        """Return a context with large random numbers where no number should be read."""
        return patched(self, filled=where)


@contextmanager
def calling(current: "ModelCall") -> Iterator[None]:
    """Compute blocks as parts of a call of their model, within the context."""
    token = _CURRENT.set(current)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class ModelCall:
    """One call of the model: the rows of its masks, and of the hidden states between blocks."""

    def __init__(self, owner):
        self.owner, self.rows, self.hidden = owner, {}, {}
        owner.counts = self.counts = {}
        owner.padding = None
        #: How far each `FlatChain` is, by its id.
        self.chains = {}
        #: Whether layers are called for their own results.
        self.computes = False

    def rows_of(self, inputs, everywhere=None, budget=None):
        mask = inputs.mask
        owned = inputs.hidden if mask is None else mask
        everywhere = self.owner.everywhere if everywhere is None else everywhere
        key = (id(owned), inputs.queries_masked, everywhere, budget)
        if key not in self.rows:
            if mask is None:
                rows = TokenRows(None, *tf.unstack(tf.shape(inputs.hidden)[:2]))
            else:
                owner = self.owner
                added = inputs.added(mask)
                rows = TokenRows(
                    added,
                    everywhere=everywhere,
                    whole=owner.whole,
                    queries_masked=inputs.queries_masked,
                    budget=budget,
                )
                owner.masked = True
                if tf.executing_eagerly():
                    some = bool(tf.reduce_any(added < -1))
                    owner.padding = some and owner.padding is not False
            # The tensor is kept, so that no other gets its id.
            self.rows[key] = (owned, rows)
        return self.rows[key][1]

    def outputs(self, block, padded):
        """What a block leaves to the layers after it; here its hidden states."""
        return padded

    def take(self, padded, rows):
        """The rows of hidden states, as the block before left them if they are from one."""
        _, known, found = self.hidden.get(id(padded), (None, None, None))
        return found if known is rows else rows.take(padded)


class FlatBlock:
    """Holder of the method that replaces the `call` of a block's layer.

    Attributes:
        run: `run_block`, or a function like it. What that returns may be an object whose method
            `plain` returns the rows; then the `run` of the next block receives that object.
    """

    def __init__(self, owner, block):
        self.owner, self.block, self.layer = owner, block, block.layer
        self.run = run_block

    def install(self):
        self.own = _own_call(self.layer)
        _set_call(self.layer, self.call)

    def remove(self):
        _set_call(self.layer, self.own)

    def call(self, *args, **kwargs):
        current = self.current()
        inputs = None if current is None else self.inputs(args, kwargs)
        if current is None or inputs is None:
            return self.owner.plain(self.layer, self.own)(*args, **kwargs)
        hidden = current.outputs(self, self.compute(current, inputs))
        return self.block.outputs(hidden, inputs)

    call.autograph_info__ = None  # pyright: ignore[reportFunctionMemberAccess]

    def current(self):
        """The call of the model that is running, or None if this block computes as before in it."""
        current = _CURRENT.get()
        if current is None or current.owner is not self.owner or current.computes:
            return None
        return current if self in self.owner.blocks else None

    def inputs(self, args, kwargs):
        """What the block computes with, or None if it cannot be computed without padding here."""
        block = self.block
        wrapped = parametrized_layer(self.layer)
        if wrapped is not None and wrapped.call_wrappers:
            return None
        if self.run is run_block and any(map(is_changed, block.inner)):
            return None
        inputs = block.inputs(args, kwargs)
        if inputs is None or not isinstance(inputs.hidden, tf.Tensor):
            return None
        owner = self.owner
        if owner.static and (owner.rows is None or not inputs.hidden.shape.is_fully_defined()):
            owner.warn_static()
            return None
        return inputs

    def compute(self, current, inputs, residual=True):
        """Return the hidden states after the block, padded."""
        owner, block = self.owner, self.block
        current.counts[id(self)] = current.counts.get(id(self), 0) + 1
        if owner.static:
            return self.compute_compiled(current, inputs, residual)
        rows = current.rows_of(inputs)
        last = self is owner.blocks[-1]
        first = last and owner.first_token_only
        x = current.take(inputs.hidden, rows)
        current.computes = True
        try:
            if self.run is run_block:
                x = x if isinstance(x, tf.Tensor) else tf.cast(x.plain(), inputs.hidden.dtype)
                left = run_block(
                    block, x, rows, inputs.training, first, residual, inputs.position_bias
                )
            else:
                left = self.run(block, x, rows, inputs.training, first)
        finally:
            current.computes = False
        x = left if isinstance(left, tf.Tensor) else tf.cast(left.plain(), inputs.hidden.dtype)
        fill = None
        if owner.filled is not None:
            fill = 100 * tf.random.normal(tf.shape(inputs.hidden), dtype=x.dtype)
        if first:
            padded = rows.put_first(x, fill)
        elif last and owner.filled == "all but the first token":
            padded = rows.put_first(tf.gather(x, rows.first), fill)
        else:
            padded = rows.put(x, fill)
            current.hidden[id(padded)] = (padded, rows, left)
        padded.set_shape(inputs.hidden.shape)
        return padded

    def compute_compiled(self, current, inputs, residual):
        """The same in shapes that do not depend on data: `owner.rows` rows, or else all."""
        owner, block = self.owner, self.block
        first = self is owner.blocks[-1] and owner.first_token_only

        def computed(rows):
            bias = inputs.position_bias
            x = rows.take(inputs.hidden)
            x = run_block(block, x, rows, inputs.training, first, residual, bias)
            return rows.put_first(x) if first else rows.put(x)

        current.computes = True
        try:
            every = current.rows_of(inputs, everywhere=True)
            if inputs.mask is None or owner.rows >= math.prod(inputs.hidden.shape[:2]):
                padded = computed(every)
            else:
                few = current.rows_of(inputs, budget=owner.rows)
                for rows in (few, every):
                    # What blocks share must not be made in a branch.
                    rows.back(block.attention.heads)
                    rows.attention_bias(block.attention.causal)
                    if inputs.position_bias is not None:
                        rows.position_bias(inputs.position_bias)
                padded = tf.cond(few.fits, lambda: computed(few), lambda: computed(every))
        finally:
            current.computes = False
        padded.set_shape(inputs.hidden.shape)
        return padded


class FlatChain(FlatBlock):
    """Holder of the methods that replace the `call` of each layer of a block of plain layers.

    The attention layer keeps its arguments, and it and those after it return zeros, which cost
    little and which nothing reads in the end. The last one returns the hidden states after the
    block; or, if the block begins with a norm and ends in a sum, what is to be added.
    """

    def install(self):
        self.own = {}
        for layer in self.block.chain:
            if id(layer) not in self.own:
                self.own[id(layer)] = (layer, own := _own_call(layer))
                _set_call(layer, self._replaced(layer, own))

    def remove(self):
        for layer, own in self.own.values():
            _set_call(layer, own)

    def _replaced(self, layer, own):
        def call(*args, **kwargs):
            current = self.current()
            result = None if current is None else self.step(current, layer, args, kwargs)
            return self.owner.plain(layer, own)(*args, **kwargs) if result is None else result

        vars(call).update(autograph_info__=None, replaced_call=own)
        return call

    def step(self, current, layer, args, kwargs):
        """What a layer of the chain returns, or None for its own result."""
        block = self.block
        at, kept = current.chains.get(id(self), (-1, None))
        attention = int(block.norm_first)
        if layer is block.layer:
            at, kept = attention, self._begin(kept, args, kwargs)
            current.chains.pop(id(self), None)
            if kept is None:
                return None
        elif at >= attention and layer is block.chain[at + 1]:
            at += 1
        elif attention and layer is block.chain[0]:
            result = self.owner.plain(layer, self.own[id(layer)][1])(*args, **kwargs)
            current.chains[id(self)] = (0, (_first_argument(args, kwargs), result))
            return result
        else:
            return None
        if at < len(block.chain) - 1:
            current.chains[id(self)] = (at, kept)
            return _zeros(layer, _first_argument(args, kwargs))
        current.chains.pop(id(self))
        return self.compute(current, kept, residual=not block.norm_first)

    def _begin(self, kept, args, kwargs):
        """What the block computes with, or None; `kept` is what its norm read and returned."""
        if any(map(has_own_call, self.block.chain)):
            return None
        inputs = self.inputs(args, kwargs)
        if inputs is None:
            return None
        hidden = inputs.hidden
        if self.block.norm_first:
            if kept is None or kept[1] is not hidden:
                return None
            inputs = dataclasses.replace(inputs, hidden=kept[0])
        if getattr(hidden, "_keras_mask", None) is not None and hasattr(
            self.layer, "_flash_attention"
        ):
            # So does the attention layer of Keras 3.
            hidden._keras_mask = None
        return inputs


def _first_argument(args, kwargs):
    return args[0] if args else kwargs.get("inputs", kwargs.get("query"))


def _zeros(layer, x):
    """Zeros in the shape of a layer's outputs."""
    kernel = getattr(layer, "kernel", None)
    width = x.shape[-1] if kernel is None else kernel.shape[-1]
    y = tf.zeros(tf.concat([tf.shape(x)[:-1], [width]], 0), layer.compute_dtype)
    y.set_shape([*x.shape[:-1], width])
    return y


# What is recomputed is computed without padding, too.


def _own_call(layer):
    """The `call` that was given to a layer itself, or None."""
    holder = recomputed_call(layer)
    return vars(layer).get("call") if holder is None else holder.own


def _set_call(layer, call):
    if (holder := recomputed_call(layer)) is not None:
        holder.own = call
    elif call is not None:
        object.__setattr__(layer, "call", call)
    else:
        object.__delattr__(layer, "call")
