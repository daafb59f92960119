"""Hidden states and attention of a model's Transformer blocks, recorded while the model runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._dense_layer import kernel_of
from keras_efficient.architecture._describe import describe
from keras_efficient.architecture._layer_paths import is_below, layer_paths
from keras_efficient.architecture._run_block import project
from keras_efficient.flavor import Model, Tensor
from keras_efficient.flavor._patched import patched
from keras_efficient.training._flat_model import whole_last_block
from keras_efficient.training._remat import recomputed_call


class BlockRecord:
    """One call of a Transformer block.

    Attributes:
        block: the `Block`.
        hidden: the hidden states after it, `[examples, tokens, width]`.
        projection: the matrix that they are multiplied by before they are compared, or None.
        negatives: pooled hidden states of other examples after this block, or None.
    """

    def __init__(self, block: Any, inputs: Any):
        self.block, self.inputs = block, inputs
        self.hidden: Any = None
        self.projection: Any = None
        self.negatives: Any = None

    @property
    def added(self) -> Tensor | None:
        """What is added to the scores of each token as a key, `[examples, tokens]`, or None."""
        mask = self.inputs.mask
        return None if mask is None else self.inputs.added(mask)

    @property
    def mask(self) -> Tensor | None:
        """Bool `[examples, tokens]`, which tokens are real; None if all are."""
        added = self.added
        return None if added is None else added > -1

    def projections(self) -> tuple:
        """Return queries, keys and values, `[examples, tokens, heads · size]` each."""
        hidden = self.inputs.hidden
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        shape = tf.shape(hidden)[:2]
        found = []
        for projected in project(self.block, rows):
            width = projected.shape[-1]
            projected = tf.reshape(projected, tf.concat([shape, [width]], 0))
            found.append(tf.ensure_shape(projected, [None, None, width]))
        return tuple(found)

    def scores(self) -> Tensor:
        """Return what attention takes the softmax of, `[examples, heads, tokens, tokens]`.

        Padding is not left out.
        """
        part = self.block.attention
        query, key = (_heads(x, part.heads) for x in self.projections()[:2])
        scores = tf.matmul(query, key, transpose_b=True) * tf.cast(part.scale, query.dtype)
        if self.inputs.position_bias is not None:
            scores += tf.cast(self.inputs.position_bias, scores.dtype)
        if part.causal:
            length = tf.shape(scores)[-1]
            earlier = tf.linalg.band_part(tf.ones([length, length], tf.bool), -1, 0)
            scores = tf.where(earlier, scores, tf.cast(-1e4, scores.dtype))
        return scores


class BlockRecorder:
    """Recorder of the Transformer blocks of a model.

    Args:
        model: a built model.
        who: "student" or "teacher", for messages.
        sample: features, as for `ke.architecture.describe`.

    Attributes:
        blocks: tuple of the `Block`s.

    Raises:
        ValueError: the model has no Transformer block that is known, one that is not known, or
            recomputes the activations of a part that contains a block.
    """

    def __init__(self, model: Model, who: str, sample: Any = None):
        self.model, self.flavor = model, flavors.of(model)
        architecture = describe(model, sample=sample)
        self.blocks = architecture.blocks
        self._who = who
        if not self.blocks or architecture.unknown:
            found = "; ".join(f"{path} ({why})" for path, why in architecture.unknown.items())
            raise ValueError(
                "Hidden states and attention can be distilled in models whose Transformer blocks "
                f"are known. Received: the {who} {type(model).__name__} {model.name!r}, with "
                f"{found or 'no Transformer block at all'}. Known are the blocks that "
                "ke.architecture.describe lists; distil other models by their outputs alone: "
                "hidden=None, attention=None."
            )

    def widths(self) -> list[int]:
        """Return the width of the hidden states after each block."""
        return [kernel_of(block.attention.output).shape[-1] for block in self.blocks]

    @contextmanager
    def recording(self) -> Iterator[list[BlockRecord]]:
        """Yield a list that receives the `BlockRecord`s of the model's calls in the block."""
        self._check_remat()
        records: list[BlockRecord] = []
        with ExitStack() as stack:
            # All tokens of the last block are compared.
            stack.enter_context(whole_last_block(self.model))
            for block in self.blocks:
                self._watch(stack, block, records)
            yield records

    def _watch(self, stack, block, records):
        last: Any = block.chain[-1] if block.chain else block.layer
        kept: list = []

        def began(args, kwargs):
            inputs = block.inputs(args, kwargs)
            if inputs is None:
                raise ValueError(
                    "Hidden states and attention can be distilled where blocks compute nothing "
                    f"else. Received: the {self._who}'s {block.path}, whose call asks for "
                    "attention scores, a cache or a mask for each query. Leave that out."
                )
            records.append(BlockRecord(block, inputs))

        def ended(args, kwargs, result):
            hidden = tf.nest.flatten(result)[0]
            if block.chain and block.norm_first:
                # The block ends in a sum outside of its layers.
                hidden = hidden + tf.cast(kept[-1], hidden.dtype)
            records[-1].hidden = hidden

        def normed(args, kwargs):
            kept[:] = [args[0] if args else next(iter(kwargs.values()))]

        if block.chain and block.norm_first:
            self._patch(stack, block.feed_forward_norm, before=normed)
        if last is block.layer:
            self._patch(stack, last, before=began, after=ended)
        else:
            self._patch(stack, block.layer, before=began)
            self._patch(stack, last, after=ended)

    def _patch(self, stack, layer, before=None, after=None):
        own = vars(layer).get("call")
        plain = layer.call

        def call(*args, **kwargs):
            if before is not None:
                before(args, kwargs)
            result = self.flavor.converted(layer, plain)(*args, **kwargs)
            if after is not None:
                after(args, kwargs, result)
            return result

        # As for `ke.unpad`, the layer is what it was before.
        vars(call).update(autograph_info__=None, replaced_call=getattr(own, "replaced_call", own))
        stack.enter_context(patched(layer, call=call))

    def _check_remat(self):
        inside = [block.path for block in self.blocks]
        for path, layer in layer_paths(self.model):
            around = any(is_below(block, path) for block in inside)
            if around and recomputed_call(layer) is not None:
                raise ValueError(
                    "Hidden states and attention can be distilled if ke.remat recomputes blocks, "
                    f"not layers around them. Received: the {self._who} with {path!r} recomputed. "
                    "Call ke.remat without `layers`."
                )


def _heads(x, heads):
    """Divide `[examples, tokens, heads · size]` into `[examples, heads, tokens, size]`."""
    size = x.shape[-1] // heads
    shape = tf.concat([tf.shape(x)[:2], [heads, size]], 0)
    return tf.ensure_shape(
        tf.transpose(tf.reshape(x, shape), [0, 2, 1, 3]), [None, heads, None, size]
    )
