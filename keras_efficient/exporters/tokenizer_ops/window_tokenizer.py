"""`WindowTokenizer`: a BERT tokenizer of questions and windows of contexts in TensorFlow ops."""

from typing import Any

import tensorflow as tf

from keras_efficient.data._question_windows import window_stride
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.exporters.tokenizer_ops.pair_tokenizer import PairTokenizer
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import RaggedTensor

_RULE = (
    "This SavedModel does not truncate questions: a window of %d tokens must leave more than %d of "
    "them to the context. Shorten the question, or export the model with longer windows."
)


class WindowTokenizer(PairTokenizer):
    """BERT tokenizer of questions and their contexts, with the windows of `QuestionWindows`.

    Args:
        tokenizer: as for `PairTokenizer`, with the question first.
        max_length: int, number of tokens of a window. Default: None, the tokenizer's own.
        stride: int, number of tokens that two windows share. Default: None, a third of
            `max_length`.

    Raises:
        InputError: as `PairTokenizer`, or for other tokenizers than those of `TextTokenizer` that
            tell the characters of words.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_length: int | None = None, stride: int | None = None
    ):
        super().__init__(tokenizer, max_length)
        self._length = tokenizer.max_length if max_length is None else max_length
        self._stride = window_stride(self._length, stride)
        # Raises the error for templates of another order.
        assert tokenizer.separator >= 0
        self.check_words()

    def __call__(self, questions: Any, contexts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tokenize questions and windows of their contexts, both string [batch].

        Returns:
            What `TextTokenizer` returns, for all windows; and a dict of int32 tensors: "starts" and
            "ends", [windows, tokens], the first character of a token's word in the context, and the
            character after its last one, 0 for other tokens; "rows", [windows], the example of a
            window; and "texts", string [batch], the contexts in valid UTF-8.
        """
        with tf.device("CPU:0"):
            asked = self._ragged(questions)
            ids, rows, batch, words = self._tokens(contexts, words=True)
            ids, starts, ends = (
                RaggedTensor.from_value_rowids(values, rows, batch, validate=False)
                for values in (ids, *words[1:])
            )
            first, total = (tf.cast(x.row_lengths(), tf.int32) for x in (asked, ids))
            special = sum(isinstance(part, int) for part, _ in self._parts)
            space = self._length - special - first
            message = _RULE % (self._length, self._stride)
            with tf.control_dependencies(
                [tf.debugging.Assert(tf.reduce_all(space > self._stride), [message])]
            ):
                step = tf.maximum(space - self._stride, 1)
            # As many as `window_starts` has.
            count = -(-tf.maximum(total - self._stride, 1) // step)
            rows = tf.repeat(tf.range(batch), count)
            place = tf.range(tf.size(rows)) - tf.repeat(tf.cumsum(count, exclusive=True), count)
            begin = place * tf.gather(step, rows)
            kept = tf.minimum(tf.gather(space, rows), tf.gather(total, rows) - begin)
            lengths = [tf.gather(first, rows), kept]
            # A column more, so that there is one to read if all texts are empty.
            dense = [tf.pad(x.to_tensor(), [[0, 0], [0, 1]]) for x in (asked, ids, starts, ends)]
            features, (starts, ends) = self._windows(dense, rows, lengths, begin)
            texts = tf.strings.unicode_transcode(contexts, "UTF-8", "UTF-8", errors="replace")
            return features, {"starts": starts, "ends": ends, "rows": rows, "texts": texts}

    def _windows(self, dense, rows, lengths, begin):
        """Return the features of windows, and the characters of their words."""
        total = lengths[0] + lengths[1] + sum(isinstance(part, int) for part, _ in self._parts)
        mask = tf.sequence_mask(total, dtype=tf.int32)
        position = tf.range(tf.shape(mask)[1])[None]
        ids, segments = tf.fill(tf.shape(mask), self._pad_id), tf.zeros_like(mask)
        words = [tf.zeros_like(mask), tf.zeros_like(mask)]
        at = tf.zeros_like(total)[:, None]

        def read(table, column):
            column = tf.clip_by_value(column, 0, tf.shape(table)[1] - 1)
            return tf.gather_nd(
                table, tf.stack([tf.broadcast_to(rows[:, None], tf.shape(column)), column], -1)
            )

        for part, segment in self._parts:
            length = tf.ones_like(total) if isinstance(part, int) else lengths[part[0]]
            end = at + length[:, None]
            here = (position >= at) & (position < end)
            if isinstance(part, int):
                values = tf.fill(tf.shape(mask), part)
            else:
                column = position - at + (begin[:, None] if part[0] else 0)
                values = read(dense[part[0]], column)
                if part[0]:
                    words = [tf.where(here, read(x, column), 0) for x in dense[2:]]
            ids = tf.where(here, values, ids)
            segments = tf.where(here, segment, segments)
            at = end
        roles = {"ids": ids, "mask": mask, "segments": segments}
        return {name: roles[role] for role, name in self._inputs.items()}, words
