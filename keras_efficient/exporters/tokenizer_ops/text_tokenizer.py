"""`TextTokenizer`: a BERT tokenizer in TensorFlow operations, for signatures of strings."""

import re
from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import tasks
from keras_efficient._errors import InputError
from keras_efficient.data._mask_tokens import positions_of
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.exporters.tokenizer_ops import normalizer_tables
from keras_efficient.exporters.tokenizer_ops.wordpiece import WordPiece
from keras_efficient.flavor._typing import Tensor

# Its class methods are missing from TensorFlow's type stubs.
RaggedTensor: Any = tf.RaggedTensor
# Marks added tokens inside a text; valid UTF-8 never contains this byte.
_MARK = b"\xff"


class TextTokenizer(tf.Module):
    """BERT tokenizer in TensorFlow operations, with the same ids as the Python tokenizer.

    It consists of TensorFlow's core operations and constants, without tensorflow-text, Python
    functions or tables to initialize, so every server and `saved_model_cli` can run it. The effect
    of the tokenizer on each code point is computed once, by the tokenizer itself, and kept as a
    table. Words are split into tokens by longest-match-first search in a trie of the vocabulary.
    Bytes that are not UTF-8 become U+FFFD, as in Python's `bytes.decode("utf-8", "replace")`.

    Args:
        tokenizer: a `data.Tokenizer` whose backend is a `tokenizers.Tokenizer` with WordPiece, as
            for BERT, DistilBERT, Electra and MiniLM.
        max_length: int, number of tokens, including special ones, after which texts are truncated.
            Default: None, the tokenizer's own.

    Raises:
        InputError: the tokenizer is of another kind, or `max_length` is out of its range.

    Examples:
        >>> from tokenizers import BertWordPieceTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s"]
        >>> vocabulary = {word: number for number, word in enumerate(words)}
        >>> tokenizer = ke.data.as_tokenizer(BertWordPieceTokenizer(vocabulary))
        >>> tokenize = ke.exporters.TextTokenizer(tokenizer)
        >>> tokenize(["Good films", "good"])["input_ids"].numpy()
        array([[2, 5, 6, 7, 3],
               [2, 5, 3, 0, 0]], dtype=int32)

    Reference:
        Song et al., 2021, Fast WordPiece Tokenization, https://arxiv.org/abs/2012.15524. It gives
        the same tokens with another algorithm.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int | None = None):
        super().__init__(name="text_tokenizer")
        max_length = tokenizer.max_length if max_length is None else max_length
        max_length = tokenizer.check_length(max_length)
        settings = WordPiece.of(tokenizer)
        self._inputs, self._pad_id = tokenizer.inputs, tokenizer.pad_id
        self._mask_id = tokenizer.mask_id
        self._prefix, self._suffix = settings.prefix, settings.suffix
        self._longest = max_length - len(settings.prefix) - len(settings.suffix)
        if self._longest < 1:
            raise InputError(
                "`max_length` must leave room for a token beside the special ones. Received: "
                f"{max_length}, with {max_length - self._longest} special tokens. Raise it."
            )
        self._keep_end, self._unknown = settings.keep_end, settings.unknown
        self._longest_word = settings.longest_word
        self._symbols_count = len(settings.alphabet) + 2
        normalizer = settings.normalizer
        with tf.device("CPU:0"):
            self._raw = _Added.of(settings.raw)
            self._normalized = _Added.of(settings.normalized)
            self._normalizing = None
            if self._normalized is not None:
                self._normalizing = _constants(normalizer_tables.normalizing(normalizer))
                normalizer = "null"
            self._splitting = _constants(normalizer_tables.splitting(normalizer, settings.alphabet))
            self._edges, self._ids = tf.constant(settings.edges), tf.constant(settings.ids)
        self._vocabulary = np.array(tokenizer.vocabulary, object)

    def __call__(self, texts):
        """Tokenize texts.

        Args:
            texts: string [batch], UTF-8.

        Returns:
            dict by the model's input names of int32 [batch, longest text of the batch]: padded ids,
            mask (1 for tokens, 0 for padding), segments (zeros), and the positions of mask tokens,
            int32 [batch, most mask tokens of a text], padded with 0: those that the model has.
        """
        # A server with a GPU would copy these small tensors back and forth.
        with tf.device("CPU:0"):
            return self._batch(self._ragged(texts))

    def check_words(self) -> None:
        """Require that words have a place in their texts, as `with_words` tells it.

        Raises:
            InputError: an added token is found in normalized texts, whose characters are others.
        """
        if self._normalized is not None:
            raise InputError(
                "Words have a place in their text if all added tokens are found before the text "
                "is normalized. Received: a tokenizer with an added token that is not "
                "(normalized=True). Add it with normalized=False, or export without the text "
                "signature."
            )

    def with_words(self, texts: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tokenize texts, and tell to which words the tokens belong.

        Words are those of the tokenizer: for BERT runs of letters and digits, and single
        punctuation marks.

        Args:
            texts: string [batch], UTF-8.

        Returns:
            What a call returns; and a dict of int32 [batch, longest text of the batch]: "first", 1
            for the first token of a word, otherwise 0; "starts" and "ends", the first character of
            a token's word, a Unicode code point counted from 0, and the character after its last
            one. All are 0 for special tokens and padding.
        """
        with tf.device("CPU:0"):
            ids, rows, batch, words = self._tokens(texts, words=True)
            ragged, *words = (
                RaggedTensor.from_value_rowids(values, rows, batch, validate=False)
                for values in (ids, *words)
            )
            features = self._batch(ragged)
            length = tf.shape(next(iter(features.values())))[1]
            words = [self._padded(values)[:, :length] for values in words]
            return features, dict(zip(("first", "starts", "ends"), words, strict=True))

    def with_masked(self, texts: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tokenize texts, and tell how many mask tokens each has.

        Args:
            texts: string [batch], UTF-8.

        Returns:
            What a call returns; and a dict of "masked", int32 [batch], and "vocabulary", string
            [vocabulary], the tokens by their ids.
        """
        features = self(texts)
        with tf.device("CPU:0"):
            masked = self._is_masked(features[self._inputs["ids"]])
            number = tf.reduce_sum(tf.cast(masked, tf.int32), 1)
            return features, {"masked": number, "vocabulary": tf.constant(self._vocabulary)}

    def _ragged(self, texts):
        """Return the ids of texts without special tokens, as a ragged tensor."""
        ids, rows, batch, _ = self._tokens(texts)
        return RaggedTensor.from_value_rowids(ids, rows, batch, validate=False)

    def _tokens(self, texts, words=False):
        """Return ids and rows of the tokens, the number of texts, and what `with_words` tells."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        batch = tf.shape(texts)[0]
        pieces = texts, tf.range(batch), tf.zeros_like(texts, tf.int32)
        if self._raw is not None:
            pieces = self._raw.split(*pieces)
        # Without added tokens that are found in normalized texts, whose characters are others.
        begins, lengths = self._places(*pieces) if words else (None, None)
        if self._normalized is not None:
            pieces = self._normalized.split(*_normalize(self._normalizing, *pieces))
        symbols, rows, starts, piece, place = _words(self._splitting, *pieces)
        ids, emitted, word, first, ends = self._spell(symbols, starts)
        found = ()
        if words:
            begin = tf.gather(begins, piece) + place
            end = begin + tf.where(symbols < 0, tf.gather(lengths, piece), 1)
            begin, end = tf.gather(begin, first), tf.gather(end, ends - 1)
            found = (
                tf.boolean_mask(x, emitted)
                for x in (tf.cast(starts, tf.int32), tf.gather(begin, word), tf.gather(end, word))
            )
        ids, rows = (tf.boolean_mask(x, emitted) for x in (ids, rows))
        return ids, rows, batch, tuple(found)

    def _places(self, texts, rows, symbols):
        """Return the first character of each piece in its text, and its number of characters."""
        lengths = tf.strings.length(texts, unit="UTF8_CHAR")
        if self._raw is not None:
            same = tf.cast(symbols[:, None] == self._raw.symbols[None], tf.int32)
            lengths += tf.reduce_sum(same * self._raw.lengths, 1)
        begins = tf.cumsum(lengths, exclusive=True)
        return begins - tf.gather(tf.math.segment_min(begins, rows), rows), lengths

    def _padded(self, ragged):
        """Return a dense tensor of what is left of each text, with zeros for special tokens."""
        ragged = ragged[:, -self._longest :] if self._keep_end else ragged[:, : self._longest]
        return tf.pad(ragged.to_tensor(), [[0, 0], [len(self._prefix), len(self._suffix)]])

    def _batch(self, ragged):
        before, after = len(self._prefix), len(self._suffix)
        kept = tf.minimum(tf.cast(ragged.row_lengths(), tf.int32), self._longest)
        total = kept + before + after
        mask = tf.sequence_mask(total, dtype=tf.int32)
        position = tf.range(tf.shape(mask)[1])[None]
        # For an empty batch the length is 0, not that of the special tokens.
        ids = tf.where(mask > 0, self._padded(ragged)[:, : tf.shape(mask)[1]], self._pad_id)
        for place, token in enumerate(self._prefix):
            ids = tf.where(position == place, token, ids)
        for place, token in enumerate(self._suffix):
            ids = tf.where(position == total[:, None] - after + place, token, ids)
        roles = {"ids": ids, "mask": mask, "segments": tf.zeros_like(ids)}
        if "mask_positions" in self._inputs:
            roles["mask_positions"], _ = positions_of(self._is_masked(ids))
        # A decoder's inputs are generated.
        return {name: roles[role] for role, name in self._inputs.items() if role in roles}

    def _is_masked(self, ids):
        return tf.equal(ids, -1 if self._mask_id is None else self._mask_id)

    def _spell(self, symbols, starts):
        """Return the token that starts at each character, and whether it belongs to a word.

        Args:
            symbols: int32 tensor [characters], their symbols.
            starts: bool tensor [characters], whether a word starts there.

        Returns:
            int32 [characters], ids; bool [characters], where words have tokens; int32
            [characters], numbers of words; int32 [words], where they start; int32 [words], where
            they end.
        """
        count = tf.size(symbols)
        word = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        first = tf.cast(tf.where(starts)[:, 0], tf.int32)
        ends = tf.concat([first[1:], count[None]], 0)
        length = tf.gather(ends - first, word)
        end = tf.gather(ends, word)
        taken, token = self._longest_matches(symbols, starts, length, end)
        added = symbols < 0
        taken, token = tf.where(added, 1, taken), tf.where(added, -1 - symbols, token)
        reached = self._reached(starts, taken)
        stuck = tf.cast(reached & (taken == 0), tf.int32)
        bad = tf.gather(tf.math.segment_max(stuck, word) > 0, word)
        emitted = tf.where(bad, starts, reached)
        return tf.where(bad, self._unknown, token), emitted, word, first, ends

    def _longest_matches(self, symbols, starts, length, end):
        """Return the length of the longest token that starts at each character, or 0, and its id.

        All characters are searched at once. Each iteration descends one level of the trie and keeps
        the searches that found an edge.
        """
        # Symbols of added tokens are negative, and so are their edges from node 0: they match none.
        letters = tf.cast(symbols, tf.int64)
        places = tf.cast(tf.where(length <= self._longest_word)[:, 0], tf.int32)
        nodes = tf.gather(tf.where(starts, tf.constant(0, tf.int64), 1), places)
        zeros = tf.zeros_like(symbols)

        def step(depth, places, nodes, taken, token):
            edge = nodes * self._symbols_count + tf.gather(letters, places + depth)
            found = tf.searchsorted(self._edges, edge)
            found = tf.minimum(found, tf.size(self._edges) - 1)
            there = tf.gather(self._edges, found) == edge
            found, places = tf.boolean_mask(found, there), tf.boolean_mask(places, there)
            ids = tf.gather(self._ids, found)
            whole = tf.where(ids >= 0)[:, 0]
            at = tf.gather(places, whole)[:, None]
            depth += 1
            taken = tf.tensor_scatter_nd_update(taken, at, tf.fill(tf.shape(whole), depth))
            token = tf.tensor_scatter_nd_update(token, at, tf.gather(ids, whole))
            more = places + depth < tf.gather(end, places)
            nodes = tf.cast(tf.boolean_mask(found, more), tf.int64) + 2
            return depth, tf.boolean_mask(places, more), nodes, taken, token

        any_number = tf.TensorShape([None])
        *_, taken, token = tf.while_loop(
            lambda depth, places, *_: tf.size(places) > 0,
            step,
            [tf.constant(0), places, nodes, zeros, zeros],
            shape_invariants=[tf.TensorShape([]), *[any_number] * 4],
        )
        return taken, token

    def _reached(self, starts, taken):
        """Return where tokens begin, by following token lengths from the starts of words."""
        count = tf.size(taken)
        # The last element is the target of jumps beyond the text and of failed matches.
        jump = tf.where(taken > 0, tf.range(count) + taken, count)
        jump = tf.concat([jump, count[None]], 0)
        reached = tf.concat([tf.cast(starts, tf.int32), [0]], 0)
        # A word of n characters has fewer than n jumps, and each round doubles their number.
        for _ in range(ceil(log2(max(self._longest_word, 2)))):
            reached = tf.tensor_scatter_nd_max(reached, jump[:, None], reached)
            jump = tf.gather(jump, jump)
        return tf.cast(reached[:-1], tf.bool)


def text_function(
    tokens_function: Callable,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    *,
    task: Any = None,
) -> Callable:
    """Make a function of strings that gives a task's answers: `serve(logits(tokens(text)))`.

    For classification these are `probabilities = softmax(logits)` and the label of the largest. If
    there is one logit, the probability is its sigmoid, and the second of two labels is chosen above
    0.5.

    Args:
        tokens_function: function of int32 [batch, length] tensors by the tokenizer's input names
            that returns a dict of tensors, of which "logits", or else the only float one, is
            [batch, classes], or of the shape of the task's head.
        tokenizer: a `data.Tokenizer` that `TextTokenizer` supports.
        labels: list of str, by class. Default: None, which is "0", "1" and so on.
        max_length: see `TextTokenizer`. Default: None.
        task: name of a task, or a `ke.tasks.Task`. Default: None, "classification".

    Returns:
        A `tf.function` of strings [batch], by the names of the task's `inputs`: "text", and for
        pairs of texts also "second_text". It is for use as a signature in `tf.saved_model.save`. It
        returns a dict of the outputs of the task, for classification "probabilities" (float32
        [batch, classes]) and "label" (string [batch]), and those of `tokens_function`, unless these
        are of windows of texts.

    Raises:
        InputError: the tokenizer is not supported. While tracing: there is not exactly one output
            of logits, the labels are not as many as the classes, or `tokens_function` has an output
            of the name of one of the task's.

    Examples:
        >>> from tokenizers import BertWordPieceTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s"]
        >>> vocabulary = {word: number for number, word in enumerate(words)}
        >>> tokenizer = ke.data.as_tokenizer(BertWordPieceTokenizer(vocabulary))
        >>> def count(input_ids, **others):
        ...     goods = tf.reduce_sum(tf.cast(input_ids == 5, tf.float32), 1, keepdims=True)
        ...     return {"logits": goods - 0.5}
        >>> serve = ke.exporters.text_function(count, tokenizer, ["bad", "good"])
        >>> serve(tf.constant(["good film", "film"]))["label"].numpy()
        array([b'good', b'bad'], dtype=object)

    Reference:
        TensorFlow, "Using the SavedModel format", section Specifying signatures during export:
        https://www.tensorflow.org/guide/saved_model
    """
    task = tasks.get(task)
    tokenize: Any = text_tokenizer(tokenizer, task, max_length)
    if labels is not None and not (
        isinstance(labels, list | tuple)
        and all(isinstance(label, str) for label in labels)
        and len(set(labels)) == len(labels)
    ):
        raise InputError(
            f"`labels` must be a list of different strings, one per class. Received: {labels!r}. "
            "Give them in the order of the logits, or None for their numbers."
        )
    given = None if labels is None else list(labels)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name=name) for name in task.inputs],
        autograph=False,
    )
    def serve(*texts):
        words = ()
        if task.head == "token":
            features, *words = tokenize.with_words(*texts)
        elif task.head == "masked_token":
            features, *words = tokenize.with_masked(*texts)
        elif task.head == "span":
            features, *words = tokenize(*texts)
        else:
            features = tokenize(*texts)
        outputs = tokens_function(**features)
        logits = tf.cast(_logits(outputs, task), tf.float32)
        answers = task.serve(logits, given, *words)
        # Servers require outputs with as many rows as the inputs, and windows are more.
        return answers if task.head == "span" else {**outputs, **answers}

    return serve


def text_tokenizer(
    tokenizer: Tokenizer, task: tasks.Task, max_length: int | None = None
) -> TextTokenizer:
    """Return the tokenizer in the graph for a task's texts, or pairs of texts.

    Args:
        tokenizer: the `data.Tokenizer`.
        task: the task.
        max_length: see `TextTokenizer`. Default: None.

    Raises:
        InputError: the tokenizer is not supported.
    """
    task.check_tokenizer(tokenizer)
    if len(task.inputs) == 1:
        found = TextTokenizer(tokenizer, max_length)
        if task.head == "token":
            found.check_words()
        return found
    if task.head == "span":
        from keras_efficient.exporters.tokenizer_ops.window_tokenizer import WindowTokenizer

        length, stride = task.window or (max_length, None)
        return WindowTokenizer(tokenizer, length, stride)
    from keras_efficient.exporters.tokenizer_ops.pair_tokenizer import PairTokenizer

    return PairTokenizer(tokenizer, max_length)


#: Axes of the logits by where the head has its outputs.
_AXES = {
    "text": "batch, outputs",
    "token": "batch, tokens, outputs",
    "span": "windows, 2, tokens",
    "masked_token": "batch, masked, outputs",
    "next_token": "batch, tokens, outputs",
    "embedding": "batch, width",
}


def _logits(outputs, task):
    if taken := set(task.serves) & set(outputs):
        raise InputError(
            f"The text signature adds the outputs {' and '.join(map(repr, task.serves))}. "
            f"Received: a model with an output called {sorted(taken)}. Rename it."
        )
    floats = {name: value for name, value in outputs.items() if value.dtype.is_floating}
    if len(floats) > 1 and "logits" in floats:
        floats = {"logits": floats["logits"]}
    shapes = {name: value.shape for name, value in floats.items()}
    axes = _AXES[task.head]
    # The number of outputs is known.
    fixed = 1 if task.head == "span" else -1
    if (
        len(shapes) != 1
        or (shape := next(iter(shapes.values()))).rank != axes.count(",") + 1
        or not shape[fixed]
    ):
        raise InputError(
            f"The text signature serves logits, [{axes}], which are the output "
            f"'logits' or the only float one. Received (shapes of float outputs): {shapes}. Export "
            "without the text signature."
        )
    return next(iter(floats.values()))


class _Added:
    """Matcher of added tokens, which are found in a text before it is split into words."""

    def __init__(self, tokens: dict[str, int]):
        self.texts = tf.constant([text.encode() for text in tokens])
        self.symbols = tf.constant([-1 - number for number in tokens.values()], tf.int32)
        self.lengths = tf.constant([len(text) for text in tokens], tf.int32)
        # The first alternative that matches wins, so the longest comes first, as in the tokenizer.
        longest_first = sorted(tokens, key=lambda text: -len(text.encode()))
        self.pattern = f"({'|'.join(map(_escape, longest_first))})".encode()

    @classmethod
    def of(cls, tokens):
        return cls(tokens) if tokens else None

    def split(self, texts, rows, symbols):
        """Split texts at added tokens.

        Args:
            texts: string tensor [pieces].
            rows: int32 tensor [pieces], their rows of the batch.
            symbols: int32 tensor [pieces], the negative symbol of an added token, or 0.

        Returns:
            The same for the new pieces.
        """
        marked = tf.strings.regex_replace(texts, self.pattern, _MARK + rb"\1" + _MARK)
        split = tf.strings.split(marked, _MARK)
        parent = tf.cast(split.value_rowids(), tf.int32)
        texts = split.flat_values
        place = tf.range(tf.size(texts)) - tf.gather(tf.cast(split.row_starts(), tf.int32), parent)
        which = tf.argmax(tf.equal(texts[:, None], self.texts[None]), axis=1)
        # Added tokens are between two marks, hence at the odd positions.
        symbols = tf.where(
            place % 2 == 1, tf.gather(self.symbols, which), tf.gather(symbols, parent)
        )
        return tf.where(symbols < 0, "", texts), tf.gather(rows, parent), symbols


def _escape(text):
    return "".join("\\x00" if c == "\0" else re.escape(c) for c in text)


def _constants(table):
    return tuple(tf.constant(part) for part in (table.pages, table.codes, table.rows))


def _expand(table, points):
    """Map code points through a `CharacterTable`; negative ones are added tokens and stay.

    Returns:
        int32 tensor [symbols], and the place of the code point that each is of.
    """
    pages, codes, expansions = table
    safe = tf.maximum(points, 0)
    page = tf.gather(pages, safe // normalizer_tables.PAGE)
    code = tf.gather_nd(codes, tf.stack([page, safe % normalizer_tables.PAGE], 1))
    code = tf.where(points < 0, normalizer_tables.ADDED, code)
    found = tf.gather(expansions, code)
    found = tf.where(found == normalizer_tables.ITSELF, points[:, None], found)
    there = found != normalizer_tables.NOTHING
    counts = tf.math.count_nonzero(there, axis=1, dtype=tf.int32)
    return tf.boolean_mask(found, there), tf.repeat(tf.range(tf.size(points)), counts)


def _decode(texts):
    """Return the code points of texts, the text of each, and its place in the text."""
    decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
    points, text = decoded.flat_values, tf.cast(decoded.value_rowids(), tf.int32)
    starts = tf.gather(tf.cast(decoded.row_starts(), tf.int32), text)
    return points, text, tf.range(tf.size(points)) - starts


def _normalize(table, texts, rows, symbols):
    """Normalize the texts of pieces."""
    points, piece, _ = _decode(texts)
    points, source = _expand(table, points)
    piece = tf.gather(piece, source)
    points = RaggedTensor.from_value_rowids(points, piece, tf.size(rows), validate=False)
    return tf.strings.unicode_encode(points, "UTF-8"), rows, symbols


def _words(table, texts, rows, symbols):
    """Return, each [characters], symbols, rows of the batch, whether a word starts, and where from.

    The latter are the piece that a character is from, and its place in the piece.
    """
    # An added token becomes one character, whose code point is replaced by its symbol.
    points, piece, place = _decode(tf.where(symbols < 0, "x", texts))
    symbols = tf.gather(symbols, piece)
    points = tf.where(symbols < 0, symbols, points)
    found, source = _expand(table, points)
    piece, place = tf.gather(piece, source), tf.gather(place, source)
    rows = tf.gather(rows, piece)
    letters = found != normalizer_tables.BREAK
    before = tf.concat([[False], letters[:-1]], 0)
    same_row = tf.concat([[False], rows[1:] == rows[:-1]], 0)
    starts = letters & tf.logical_not(before & same_row)
    return tuple(tf.boolean_mask(part, letters) for part in (found, rows, starts, piece, place))
