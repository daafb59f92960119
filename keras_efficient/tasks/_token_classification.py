"""`TokenClassification`: a tag for each word, such as those of named entities."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError, listed
from keras_efficient.data._bio_tags import (
    OUTSIDE,
    check_tags,
    entity_types,
    tag_indices,
    tag_names,
)
from keras_efficient.data._data_files import files_name, is_file_source, named_files
from keras_efficient.data._read_tagged import TaggedText, read_tagged, tagged_text
from keras_efficient.data._records import Records
from keras_efficient.data._token_labels import TokenLabels, token_words
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Tensor
from keras_efficient.metrics._entity_report import EntityReport, entity_report
from keras_efficient.metrics._scores import scores_of
from keras_efficient.tasks._task import Task


class TokenClassification(Task):
    """Token classification: each word has a tag, as in named-entity recognition.

    Tags are in the BIO scheme: "O", "B-TYPE" for the first word of an entity, "I-TYPE" for its
    other words. The head has an output per tag for each token, and the loss is the cross-entropy of
    their softmax, averaged over the words: only the first token of a word counts. The report is a
    `ke.metrics.EntityReport`. `read` takes CoNLL files and JSON Lines, `records` the same from
    memory.

    The signature of strings answers for each token with "tags", string `[batch, tokens]`, "scores",
    float32, the probability of the tag, and "starts" and "ends", int32, the characters of the word;
    the tag is "" for tokens that do not begin a word, special tokens and padding. There the words
    are those of the tokenizer: for BERT runs of letters and digits, and single punctuation marks.

    Args:
        texts: Number of texts per example, 1. Default: 1.

    Raises:
        InputError: `texts` is not 1.

    Examples:
        >>> task = ke.tasks.TokenClassification()
        >>> records = task.records([{"tokens": ["Anna", "left"], "tags": ["B-person", "O"]}])
        >>> records.label_names, records.labels.words[0].tolist()
        (('O', 'B-person', 'I-person'), [[0, 4, 1], [5, 9, 0]])

    Reference:
        `transformers.TFAutoModelForTokenClassification`; Ramshaw & Marcus 1995, "Text Chunking
        using Transformation-Based Learning", for the tags.
    """

    name = "token_classification"
    choices: ClassVar = {"entity_f1": ("entity F1", "max"), "loss": ("loss", "min")}
    serves = ("tags", "scores", "starts", "ends")
    head = "token"
    compresses = True

    def __init__(self, texts: int = 1):
        super().__init__(texts)
        if texts != 1:
            raise InputError(
                "Tags belong to the words of one text. Received: texts=2. Name one text column."
            )

    # --- label format ------------------------------------------------------------------------

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[Any, tuple[str, ...]]:
        """Return `TokenLabels`, and "O", "B-TYPE" and "I-TYPE" of each type, sorted.

        Args:
            values: for each text a list of tuples of the first character of a word, the character
                after its last one, and its tag. `records` makes them of tokens or entities.
            label_names: names of the classes; None for the types that occur.
            where: function of i that names the origin of value i, for error messages.

        Raises:
            InputError: a tag is not one of BIO, does not continue the one before it, or is not
                among the names.
        """
        for i, words in enumerate(values):
            check_tags([tag for *_, tag in words], lambda j, i=i: f"{where(i)}, word {j + 1}")
        return _encoded(values, label_names, lambda i, j: f"{where(i)}, word {j + 1}")

    def read(self, source: Any, **columns: Any) -> Records:
        """Read CoNLL files, or JSON Lines (.jsonl, .ndjson) of tokens and tags or of entities.

        A CoNLL file has a word and its tag on each line, the first and the last of the columns,
        between tabs or else spaces, and a blank line between texts. An object of JSON Lines has
        "tokens" and "tags", or a "text" and its "entities" or "spans", a list of {"start", "end",
        "label"} in characters.

        Args:
            source: Path of a file, which may be gzipped; pattern of files, such as
                "train-*.conll"; or list of paths and patterns.
            columns: `text_column` and `label_column`, keys of JSON Lines in place of those above;
                and `label_names`, those of the training records for validation data.

        Raises:
            InputError: The file or a line cannot be used. The message names both.
        """
        text, label = columns.get("text_column"), columns.get("label_column")
        if columns.get("delimiter") is not None:
            raise InputError(
                "Words and tags are separated by tabs or spaces, or stand in JSON. Received: "
                f"delimiter={columns['delimiter']!r}. Leave it out."
            )
        if not is_file_source(source):
            raise InputError(
                "Tagged texts are read from files. Received: "
                f"{source!r:.60} of type {type(source).__name__}. Give dicts to `records`."
            )
        keys = {
            "text_key": None if text in (None, "text") else _one(text, "text_column"),
            "label_key": None if label in (None, "label") else _one(label, "label_column"),
        }
        paths = named_files(source)
        found = [text for path in paths for text in read_tagged(path, **keys)]
        return _records(found, columns.get("label_names"), files_name(paths))

    def records(
        self,
        examples: Iterable[Mapping[str, Any]],
        label_names: Sequence[str] | None = None,
        *,
        source: str = "memory",
    ) -> Records:
        """Make records from dicts, as they stand in JSON Lines.

        Args:
            examples: Dicts of "tokens" and "tags", or of "text" and "entities" or "spans".
            label_names: Those of the training records, for validation data. Default: None, "O" and
                the tags of the types that occur.
            source: Origin of the examples, for error messages. Default: "memory".

        Raises:
            InputError: An example cannot be used.
        """
        found = [tagged_text(row, f"{source}, item {i}") for i, row in enumerate(examples)]
        return _records(found, label_names, source)

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require entities of every type among the records to train on."""
        if not isinstance(train.labels, TokenLabels):
            raise InputError(
                "Token classification learns a tag for each word. Received: "
                f"{train!r:.200}. Read the file with the task's `read`."
            )
        counts = _entities(train)
        if not counts.any():
            raise InputError(
                f"There must be an entity to learn. Received: {train.source}, where every word is "
                f"tagged {OUTSIDE!r}. Check the column of the tags."
            )
        missing = np.flatnonzero(counts == 0)
        if validation is not None and missing.size:
            names = listed(np.array(entity_types(train.label_names))[missing])
            raise InputError(
                "Every type of entity must occur in the training part. Received: "
                f"{names} never ({train.source}). Add texts with it, leave it out, hold out fewer, "
                "or use another --seed."
            )

    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return the number and types of entities, and how good finding none is."""
        types, entities = entity_types(train.label_names), int(_entities(train).sum())
        tags = np.concatenate([rows[:, 2] for rows in validation.labels.words])
        return (
            f"{entities:,} entities to train on, of {len(types)} types: "
            f"{listed(types, quoted=False)}",
            f"finding no entity has F1 0 and is right on {(tags == 0).mean():.1%} of the words",
        )

    # --- head, loss and metrics --------------------------------------------------------------

    def head_size(self, num_labels: int | None) -> int:
        """Return the number of tags, which must be given."""
        if type(num_labels) is not int or num_labels < 3 or num_labels % 2 == 0:
            raise InputError(
                "`num_labels` must be the number of tags: O, and B and I of each type. Received: "
                f"{num_labels!r}. Give len(records.label_names)."
            )
        return num_labels

    def loss(self, keras: Any) -> Any:
        """Return the cross-entropy of the softmax, averaged over the tokens that count."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)

    def metrics(self, keras: Any, num_labels: int) -> list:
        """Return the F1 of entities."""
        from keras_efficient.metrics._entity_f1 import entity_f1

        return [entity_f1(num_labels, library=keras.__name__)]

    # --- evaluation --------------------------------------------------------------------------

    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return int64 classes `[batch, tokens]`, -100 for tokens that do not count."""
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.dtype.kind not in "iu" or not (labels != IGNORED).any():
            raise InputError(
                f"`{argument}` compares a class for each token. Received: labels of shape "
                f"{labels.shape} and type {labels.dtype}. Name the `task` of the model."
            )
        return labels.astype("int64")

    def scores(self, outputs: Mapping[str, Any], labels: Any = None) -> np.ndarray:
        """Return a model's scores among its outputs, `[batch, tokens, classes]`."""
        return scores_of(outputs, rank=3)

    def report(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> EntityReport:
        """Return precision, recall and F1 of entities, and the same for each type."""
        names = self._names(label_names, scores.shape[-1])
        return entity_report(labels, scores.argmax(-1), names, sample_weight=sample_weight)

    def pseudo_label(
        self,
        records: Records,
        tokenizer: Any,
        predict: Callable[[Any], Any],
        label_names: Sequence[str] = (),
        **options: Any,
    ) -> Records:
        """Tag the tokenizer's words, each as its first token; texts without words are left out."""
        data = self.batches(records, tokenizer, shuffle=False, **options)
        classes = [row for x in data for row in np.asarray(predict(x)).argmax(-1)]
        _, spans, *_ = tokenizer.encode_words(records.texts, data.stats.max_length)
        words = [token_words(span, row) for span, row in zip(spans, classes, strict=True)]
        kept = [number for number, rows in enumerate(words) if len(rows)]
        found = records.take(kept)
        labels = TokenLabels(words[number] for number in kept)
        return Records(found.texts, labels, tuple(label_names), records.source)

    def _names(self, label_names, outputs):
        """Return the names of the tags; types without names are numbers."""
        if label_names is None:
            return tag_names(map(str, range((outputs - 1) // 2)))
        names = self.label_names(label_names, outputs)
        entity_types(names)
        return names

    # --- signature and decoding --------------------------------------------------------------

    def serve(
        self,
        logits: Tensor,
        label_names: Sequence[str] | None,
        tokens: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return "tags", "scores", "starts" and "ends" of the words, at their first tokens."""
        import tensorflow as tf

        assert tokens is not None
        names = self._names(label_names, logits.shape[-1])
        first = tokens["first"] > 0
        best = tf.argmax(logits, axis=-1, output_type=tf.int32)
        scores = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
        with tf.device("CPU:0"):
            tags = tf.where(first, tf.gather(tf.constant(names), best), "")
        return {
            "tags": tags,
            "scores": tf.where(first, scores, 0.0),
            "starts": tf.where(first, tokens["starts"], 0),
            "ends": tf.where(first, tokens["ends"], 0),
        }

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "entities" of each text, a list of dicts in the order of the text.

        An entity has "text", "type", "start" and "end", its characters, and "score", the mean
        probability of the tags of its words.
        """
        columns = (outputs[name] for name in ("text", *self.serves))
        return [{"entities": _decoded(*row)} for row in zip(*columns, strict=True)]


def _one(column, argument):
    if not isinstance(column, str):
        raise InputError(
            f"`{argument}` must name one column. Received: {column!r:.80}. Name the key of the "
            "tokens or texts, and that of the tags or entities."
        )
    return column


def _records(found: Sequence[TaggedText], label_names, source) -> Records:
    labels, names = _encoded(
        [text.words for text in found], label_names, lambda i, j: found[i].origins[j]
    )
    return Records(tuple(text.text for text in found), labels, names, source)


def _encoded(values, label_names, where):
    """Return `TokenLabels` and the names of the classes of tags that have been checked."""
    if label_names is None:
        names = tag_names(tag[2:] for words in values for *_, tag in words if tag != OUTSIDE)
    else:
        names = tuple(label_names)
        entity_types(names)
    labels = []
    for i, words in enumerate(values):
        tags = tag_indices([tag for *_, tag in words], names, lambda j, i=i: where(i, j))
        spans = np.array([span for *span, _ in words], np.int32).reshape(-1, 2)
        labels.append(np.column_stack([spans, tags]))
    return TokenLabels(labels), names


def _entities(records):
    """Return the number of entities of each type."""
    tags = np.concatenate([rows[:, 2] for rows in records.labels.words])
    return np.bincount(tags[tags % 2 == 1] // 2, minlength=len(records.label_names) // 2)


def _decoded(text, tags, scores, starts, ends):
    """Return the entities that the tags of one text mark."""
    found: list[dict[str, Any]] = []
    before = OUTSIDE
    for tag, score, start, end in zip(tags, scores, starts, ends, strict=True):
        if not tag:
            continue
        if not (math.isfinite(score) and 0 <= start < end <= len(text)):
            raise ValueError("not a finite score and characters of the text for each word")
        if tag != OUTSIDE:
            if tag[0] == "B" or tag[2:] != before[2:]:
                found.append(
                    {"text": "", "type": tag[2:], "start": start, "end": end, "scores": []}
                )
            found[-1]["end"] = end
            found[-1]["scores"].append(score)
        before = tag
    for entity in found:
        scores = entity.pop("scores")
        entity["text"] = text[entity["start"] : entity["end"]]
        entity["score"] = sum(scores) / len(scores)
    return found
