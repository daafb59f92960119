"""Index of the tokens of a batch that are computed: the rows of `[tokens, width]` tensors."""

from typing import Any

import tensorflow as tf

from keras_efficient.architecture import _row_functions as functions
from keras_efficient.flavor import Tensor

#: Added to the scores of later tokens in causal attention.
LATER = -1e9


class TokenRows:
    """Which tokens of a padded batch have rows, and where attention finds them.

    Rows exist for real tokens; for the first token of each example, which classifiers read; and
    for all tokens of an example without any real one, whose attention is uniform in the padded
    model. Only real tokens are attended to.

    If padding as a query attends to nothing, its attention is uniform, too. So there are rows for
    all tokens of an example whose first one is padding.

    In attention, the rows of an example stand one after the other, however its padding is
    arranged, and examples are as long as the one with the most rows.

    Args:
        added: float `[batch, length]`, what is added to the scores of each token as a key: 0 for
            real tokens, a large negative number for padding. None: all tokens are real.
        batch: number of examples, a tensor; needed if `added` is None.
        length: number of tokens of each, a tensor; likewise.
        everywhere: whether padding has rows, too. Default: False.
        whole: whether to add rows that stand for nothing until their number is a multiple of 16, or
            of 32 beyond 128. Products that are prepared for each number of rows then are prepared
            for few. Default: False.
        queries_masked: as in `BlockInputs`. Default: False.
        budget: number of rows, for compilers that take only shapes that do not depend on data:
            rows that stand for nothing are added. Attention then sees examples of `length`.
            Default: None, as many as are needed.

    Attributes:
        fits: bool tensor, whether `budget` is enough. If not, nothing else here is of use.
        present: float `[tokens, 1]`, 0 for rows that stand for nothing if there is a budget; None
            if no row has to be told apart.
    """

    def __init__(
        self,
        added: Tensor | None,
        batch: Tensor = None,
        length: Tensor = None,
        *,
        everywhere: bool = False,
        whole: bool = False,
        queries_masked: bool = False,
        budget: int | None = None,
    ):
        if added is not None:
            wide = _wide(added)
            # Numbers, if they are known: in a branch, XLA would not know tensors for constants.
            known = wide.shape.is_fully_defined()
            batch, length = wide.shape if known else tf.unstack(tf.shape(wide))
            added = wide
        self.batch, self.length = batch, length
        self.size = batch * length
        self.number: Any = None
        self.present: Any = None
        if added is None or everywhere:
            self.index = self.used = None
            self.place = tf.reshape(tf.range(self.size), [batch, length])
            self.counts = tf.fill([batch], length)
            self.bias: Any = None if added is None else _for_keys(added)
            if added is not None and queries_masked:
                self.bias = tf.minimum(self.bias, _for_queries(added))
            self.example = tf.repeat(tf.range(batch), length)
            self.rank = tf.tile(tf.range(length), [batch])
        else:
            real = added > -1
            empty = tf.logical_not(tf.reduce_any(real, 1, keepdims=True))
            first = tf.range(length)[None] < 1
            kept = real | first | empty
            if queries_masked:
                kept |= tf.logical_not(real[:, :1])
            self.counts = tf.reduce_sum(tf.cast(kept, tf.int32), 1)
            starts = tf.cumsum(self.counts, exclusive=True)
            if budget is None:
                self.index = tf.cast(tf.where(tf.reshape(kept, [-1]))[:, 0], tf.int32)
                last, places = None, tf.range(tf.reduce_max(self.counts))
            else:
                self.index, last, places = _first(kept, budget), budget - 1, tf.range(length)
                number = tf.reduce_sum(self.counts)
                self.fits = number <= budget
                self.present = tf.cast(tf.range(budget) < number, tf.float32)[:, None]
            present = places[None] < self.counts[:, None]
            self.place = starts[:, None] + tf.minimum(places[None], self.counts[:, None] - 1)
            self.place = self.place if last is None else tf.minimum(self.place, last)
            bias = tf.gather(tf.reshape(added, [-1]), tf.gather(self.index, self.place))
            # Less than anything added, so that nothing beyond an example's end is attended to.
            self.bias = _for_keys(tf.where(present, bias, bias.dtype.min))
            if queries_masked:
                self.bias = tf.minimum(self.bias, _for_queries(bias))
            self.used = _for_queries(tf.cast(present, tf.float32))
            self.example = self.index // length
            self.rank = tf.range(tf.size(self.index)) - tf.gather(starts, self.example)
            if budget is not None:
                self.rank *= tf.cast(self.present[:, 0], tf.int32)
            if whole:
                self.number = tf.size(self.index)
                multiple = tf.where(self.number > 128, 32, 16)
                added = [[0, -self.number % multiple]]
                self.index, self.example, self.rank = (
                    tf.pad(x, added) for x in (self.index, self.example, self.rank)
                )
        self.first = self.place[:, 0]
        self._back, self._position_bias, self._causal = {}, {}, None

    def back(self, heads: int) -> Tensor:
        """Return the index in `[batch · heads · places]` of each head of each row."""
        if heads not in self._back:
            places = tf.shape(self.place)[1]
            start = self.example * (heads * places) + self.rank
            self._back[heads] = tf.reshape(start[:, None] + tf.range(heads) * places, [-1])
        return self._back[heads]

    def attention_bias(self, causal: bool) -> Tensor | None:
        """Return what is added to the scores, `[batch, 1, 1 or queries, keys]`, or None."""
        if not causal:
            return self.bias
        if self._causal is None:
            places = tf.shape(self.place)[1]
            later = 1 - tf.linalg.band_part(tf.ones([places, places]), -1, 0)
            later = (LATER * later)[None, None]
            self._causal = later if self.bias is None else tf.minimum(self.bias, later)
        return self._causal

    def position_bias(self, padded: Tensor) -> Tensor:
        """Return a bias `[1 or batch, heads, length, length]` as `[batch, heads, places, places]`.

        Blocks share it, as they share the bias.
        """
        if id(padded) not in self._position_bias:
            bias = tf.broadcast_to(padded, tf.concat([[self.batch], tf.shape(padded)[1:]], 0))
            if self.index is not None:
                starts = tf.range(self.batch)[:, None] * self.length
                positions = tf.gather(self.index, self.place) - starts
                bias = tf.gather(bias, positions, axis=2, batch_dims=1)
                bias = tf.gather(bias, positions, axis=3, batch_dims=1)
            # The tensor is kept, so that no other gets its id.
            self._position_bias[id(padded)] = (padded, bias)
        return self._position_bias[id(padded)][1]

    def _used(self, rows):
        """Rows without those that stand for nothing."""
        return rows if self.number is None else rows[: self.number]

    def take(self, padded: Tensor) -> Tensor:
        """Return the rows `[tokens, width]` of `[batch, length, width]`."""
        rows = tf.reshape(padded, [-1, padded.shape[-1]])
        return rows if self.index is None else functions.take_rows(rows, self.index)

    def put(self, rows: Tensor, fill: Tensor | None = None) -> Tensor:
        """Return `[batch, length, width]`, zero or `fill` where there is no row."""
        shape = tf.stack([self.batch, self.length, tf.shape(rows)[1]])
        if self.present is not None:
            rows *= tf.cast(self.present, rows.dtype)
        if self.index is not None:
            rows = functions.put_rows(self._used(rows), self._used(self.index), self.size)
        padded = tf.reshape(rows, shape)
        padded.set_shape([None, None, rows.shape[-1]])
        if fill is not None and self.index is not None:
            index = self._used(self.index)
            ones = tf.ones_like(index)[:, None]
            present = tf.scatter_nd(index[:, None], ones, [self.size, 1])
            present = tf.reshape(present, [self.batch, self.length, 1])
            padded = tf.where(present > 0, padded, fill)
        return padded

    def put_first(self, rows: Tensor, fill: Tensor | None = None) -> Tensor:
        """Return `[batch, length, width]` with the first tokens' rows `[batch, width]`."""
        rest = [self.batch, self.length - 1, rows.shape[-1]]
        others = tf.zeros(rest, rows.dtype) if fill is None else fill[:, 1:]
        return tf.concat([rows[:, None], others], 1)


def _wide(added: Tensor) -> Tensor:
    """A mask in float32 at least: blocks in integers add one in bfloat16 to scores in float32."""
    return tf.cast(added, tf.float32) if added.dtype.size == 2 else added


def _first(kept, number):
    """The first indices at which a bool tensor is true, filled up with zeros."""
    kept = tf.reshape(kept, [-1])
    slots = tf.where(kept, tf.cumsum(tf.cast(kept, tf.int32)) - 1, number)
    slots = tf.minimum(slots, number)[:, None]
    return tf.scatter_nd(slots, tf.range(tf.size(kept)), [number + 1])[:number]


# LiteRT has no operation for `x[:, None, None, :]` of unknown sizes.


def _for_keys(x):
    """`[batch, length]` as `[batch, 1, 1, length]`."""
    return tf.expand_dims(tf.expand_dims(x, 1), 1)


def _for_queries(x):
    """`[batch, length]` as `[batch, 1, length, 1]`."""
    return tf.expand_dims(tf.expand_dims(x, 1), -1)
