"""`QuestionAnswering`: answers to questions, found as parts of a text."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._answer_labels import AnswerLabels
from keras_efficient.data._data_files import files_name, is_file_source, named_files
from keras_efficient.data._question_windows import QuestionWindows
from keras_efficient.data._read_questions import (
    QUESTION_KEYS,
    Question,
    question_of,
    read_questions,
)
from keras_efficient.data._records import Records
from keras_efficient.flavor._typing import Dataset, Tensor
from keras_efficient.metrics._answer_report import AnswerReport, answer_report
from keras_efficient.metrics._labelled_batches import joined
from keras_efficient.metrics._scores import scores_of
from keras_efficient.tasks._task import Task

#: Windows that are scored at once.
_WINDOWS = 256


class QuestionAnswering(Task):
    """Extractive question answering: the answer to a question is a part of its context.

    The head has two outputs per token, the logits of the first and of the last token of the answer,
    over the tokens of the context and the first special token, which stands for no answer. The loss
    is the mean of the cross-entropies of both softmaxes. Contexts longer than a window are read in
    overlapping windows, of which the most probable answer is taken; questions are never truncated.
    The report is a `ke.metrics.AnswerReport`. `read` takes JSON of SQuAD and JSON Lines, `records`
    the same from memory.

    An answer consists of whole words of the tokenizer, at most 30 tokens. The signature of strings
    takes "question" and "context" and answers with "answer", string `[batch]`; "start" and "end",
    int32, its characters in the context; "score", float32, its probability; and "no_answer_score",
    the probability that the context has no answer. If some of the questions that are evaluated have
    no answer, a question counts as not answered where the latter is the larger one.

    Args:
        texts: Number of texts per example, 2: a question and its context. Default: 2.

    Raises:
        InputError: `texts` is not 2.

    Examples:
        >>> task = ke.tasks.QuestionAnswering()
        >>> context = "Anna lives in Rome."
        >>> answers = {"text": ["Rome"], "answer_start": [14]}
        >>> row = {"question": "Where does Anna live?", "context": context, "answers": answers}
        >>> task.records([row]).labels.answers
        ((('Rome', 14),),)

    Reference:
        `transformers.TFAutoModelForQuestionAnswering`; Devlin et al. 2019, "BERT: Pre-training of
        Deep Bidirectional Transformers for Language Understanding", section 4.2.
    """

    name = "question_answering"
    choices: ClassVar = {
        "span_accuracy": ("share of windows whose first and last token are right", "max"),
        "loss": ("loss", "min"),
    }
    serves = ("answer", "start", "end", "score", "no_answer_score")
    head = "span"
    compresses = True

    def __init__(self, texts: int = 2):
        super().__init__(texts)
        if texts != 2:
            raise InputError(
                "An answer belongs to a question and its context. Received: texts=1. Name two text "
                "columns, or none for 'question' and 'context'."
            )
        self._windows: QuestionWindows | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return "question" and "context"."""
        return QUESTION_KEYS[:2]

    @property
    def window(self) -> tuple[int, int] | None:
        """Return the length of the windows of the data and how much they share, or None."""
        return None if self._windows is None else (self._windows.max_length, self._windows.stride)

    # --- label format ------------------------------------------------------------------------

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[Any, tuple[str, ...]]:
        """Return `AnswerLabels`, and no names.

        Args:
            values: for each question a list of tuples of an answer and its first character.
            label_names: None; there are no classes.
            where: function of i that names the origin of value i, for error messages.

        Raises:
            InputError: a value is no such list.
        """
        for i, row in enumerate(values):
            if not isinstance(row, list | tuple) or not all(
                isinstance(pair, list | tuple) and len(pair) == 2 for pair in row
            ):
                raise InputError(
                    "The answers of a question are a list of (text, first character). Received: "
                    f"{row!r:.60} ({where(i)}). Give dicts of questions to `records`."
                )
        return AnswerLabels(values), ()

    def read(self, source: Any, **columns: Any) -> Records:
        """Read JSON files of SQuAD 1.1 or 2.0 (.json), or JSON Lines (.jsonl, .ndjson).

        An object of JSON Lines has a "question", a "context" and "answers": {"text": [...],
        "answer_start": [...]}, with the first character of each answer in the context, or a list of
        {"text", "answer_start"}. Empty lists mean that the context does not answer the question.

        Args:
            source: Path of a file, which may be gzipped; pattern of files; or list of paths and
                patterns.
            columns: `text_column`, the keys of the question and the context, and `label_column`,
                that of the answers, of JSON Lines in place of those above.

        Raises:
            InputError: The file or a question cannot be used. The message names both.
        """
        if columns.get("delimiter") is not None:
            raise InputError(
                "Questions stand in JSON. Received: "
                f"delimiter={columns['delimiter']!r}. Leave it out."
            )
        if not is_file_source(source):
            raise InputError(
                "Questions are read from files. Received: "
                f"{source!r:.60} of type {type(source).__name__}. Give dicts to `records`."
            )
        text, label = columns.get("text_column"), columns.get("label_column")
        keys = (
            *(QUESTION_KEYS[:2] if text in (None, "text") else _keys(text, 2, "text_column")),
            *(QUESTION_KEYS[2:] if label in (None, "label") else _keys(label, 1, "label_column")),
        )
        paths = named_files(source)
        found = [question for path in paths for question in read_questions(path, keys)]
        return _records(found, files_name(paths))

    def records(self, examples: Iterable[Mapping[str, Any]], *, source: str = "memory") -> Records:
        """Make records from dicts, as they stand in JSON Lines.

        Args:
            examples: Dicts of "question", "context" and "answers".
            source: Origin of the examples, for error messages. Default: "memory".

        Raises:
            InputError: An example cannot be used.
        """
        found = [question_of(row, f"{source}, item {i}") for i, row in enumerate(examples)]
        return _records(found, source)

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require an answer among the records to train on."""
        if not isinstance(train.labels, AnswerLabels):
            raise InputError(
                "Question answering learns where answers stand. Received: "
                f"{train!r:.200}. Read the file with the task's `read`."
            )
        if not any(train.labels.answers):
            raise InputError(
                f"There must be an answer to learn. Received: {train.source}, where no question "
                "has one. Check the key of the answers."
            )

    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return the number of questions without answers, and how good the context itself is."""
        without = sum(not row for row in train.labels.answers)
        contexts = len(set(train.second_texts or ()))
        report = _report(validation, range(len(validation)), [""] * len(validation))
        return (
            f"questions about {contexts:,} texts, {without:,} of them without an answer",
            f"always answering with {report.baseline} has F1 {report.baseline_f1:.4f} and is "
            f"exactly right for {report.baseline_exact_match:.1%}",
        )

    def batches(
        self, records: Any, tokenizer: Any, *, training: bool = True, **options: Any
    ) -> Dataset:
        """Return batches of windows, also of questions and contexts without answers."""
        if isinstance(records, Records) and records.labels is None:
            texts, second = records.texts, records.second_texts
            none = AnswerLabels(() for _ in texts)
            records = Records(texts, none, (), records.source, second)
        return super().batches(records, tokenizer, training=training, **options)

    # --- head, loss and metrics --------------------------------------------------------------

    def head_size(self, num_labels: int | None) -> int:
        """Return 2, for the first and the last token."""
        if num_labels not in (None, 2):
            raise InputError(
                "The head of question answering has two outputs. Received: "
                f"num_labels={num_labels!r}. Leave `num_labels` out."
            )
        return 2

    def label_names(self, given: Sequence[str] | None, outputs: int) -> list[str]:
        """Return no names."""
        if given or outputs != 2:
            raise InputError(
                "A model for question answering has two outputs, without names. Received: "
                f"{outputs} outputs, label_names={given!r}. Leave the names out, or choose the "
                "task that has classes."
            )
        return []

    def loss(self, keras: Any) -> Any:
        """Return the mean of the cross-entropies of the first and of the last token."""
        return _loss_class(keras)(from_logits=True)

    def metrics(self, keras: Any, num_labels: int) -> list:
        """Return the share of windows whose first and last token are both right."""
        return [keras.metrics.MeanMetricWrapper(_both_right, name="span_accuracy")]

    # --- evaluation --------------------------------------------------------------------------

    def with_data(self, data: Any) -> "QuestionAnswering":
        """Return the task with the questions of a dataset, which `report` needs.

        Args:
            data: Dataset of `ke.data.text` with `AnswerLabels`.

        Raises:
            InputError: It is something else, and the task knows of no questions.
        """
        windows = getattr(data, "windows", None)
        if not isinstance(windows, QuestionWindows):
            if self._windows is not None:
                return self
            raise InputError(
                "Answers are compared as texts, which a dataset of ke.data.text knows by its "
                f"`windows`. Received: {type(data).__name__} without them. Give the dataset as "
                "ke.data.text returned it, or task.with_data(dataset)."
            )
        other = type(self)(self.texts)
        other._windows = windows
        return other

    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return int64 `[batch, 3]`: first and last token, and number of the window."""
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.shape[1] != 3 or labels.dtype.kind not in "iu":
            raise InputError(
                f"`{argument}` compares answers, with labels [batch, 3] of ke.data.text. Received: "
                f"labels of shape {labels.shape} and type {labels.dtype}. Name the `task` of the "
                "model."
            )
        return labels.astype("int64")

    def scores(self, outputs: Mapping[str, Any], labels: Any = None) -> np.ndarray:
        """Return a model's logits among its outputs, as `[batch, tokens, 2]`."""
        return np.swapaxes(scores_of(outputs, rank=3), 1, 2)

    def report(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> AnswerReport:
        """Return exact match and F1 of the answers, from all windows of their contexts.

        Raises:
            InputError: the task has no data; see `with_data`.
        """
        windows = self.with_data(None)._windows
        assert windows is not None
        weights = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight)
        best = _best_answers(windows, labels[:, 2], scores)
        numbers = sorted(best)
        answers = windows.records.labels.answers
        unanswerable = any(not answers[n] for n in numbers)
        predictions = [
            "" if unanswerable and best[n][1] > best[n][0] else best[n][2][0] for n in numbers
        ]
        return _report(
            windows.records, numbers, predictions, [weights[best[n][3]] for n in numbers]
        )

    def pseudo_label(
        self,
        records: Records,
        tokenizer: Any,
        predict: Callable[[Any], Any],
        label_names: Sequence[str] = (),
        **options: Any,
    ) -> Records:
        """Answer questions; none are answered where the score of no answer is the largest."""
        data = self.batches(records, tokenizer, shuffle=False, **options)
        scores = joined([self.scores({"logits": predict(features)}) for features, _ in data])
        best = _best_answers(data.windows, np.arange(len(scores)), scores)
        answers = [
            [answer] if score >= none and answer[0].strip() else []
            for score, none, answer, _ in (best[n] for n in range(len(records)))
        ]
        texts, second = records.texts, records.second_texts
        return Records(texts, AnswerLabels(answers), (), records.source, second)

    # --- signature and decoding --------------------------------------------------------------

    def serve(
        self,
        logits: Tensor,
        label_names: Sequence[str] | None,
        tokens: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the best answer of each context among its windows, and the score of none."""
        import tensorflow as tf

        from keras_efficient.metrics._best_spans import best_spans

        assert tokens is not None
        self.label_names(label_names, 2)
        texts, rows = tokens["texts"], tokens["rows"]
        batch = tf.shape(texts)[0]
        first, last, scores, none = best_spans(logits, tokens["ends"] > 0)
        best = tf.math.unsorted_segment_max(scores, rows, batch)
        # The first window of those with the best score.
        windows = tf.range(tf.size(rows))
        windows = tf.where(scores == tf.gather(best, rows), windows, tf.size(rows))
        chosen = tf.math.unsorted_segment_min(windows, rows, batch)
        starts = tf.gather_nd(tokens["starts"], tf.stack([chosen, tf.gather(first, chosen)], 1))
        ends = tf.gather_nd(tokens["ends"], tf.stack([chosen, tf.gather(last, chosen)], 1))
        with tf.device("CPU:0"):
            answers = tf.strings.substr(texts, starts, ends - starts, unit="UTF8_CHAR")
        return {
            "answer": answers,
            "start": starts,
            "end": ends,
            "score": best,
            "no_answer_score": tf.math.unsorted_segment_min(none, rows, batch),
        }

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "answer", "start", "end", "score" and "no_answer_score" of each question."""
        columns = (outputs[name] for name in ("context", *self.serves))
        return [_decoded(*row) for row in zip(*columns, strict=True)]


def _keys(column, number, argument):
    names = [column] if isinstance(column, str) else list(column)
    if len(names) != number or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"`{argument}` must name {number} keys of JSON Lines. Received: {column!r:.80}. Name "
            "those of the question and the context as text columns, and that of the answers as "
            "label column."
        )
    return names


def _records(found: Sequence[Question], source) -> Records:
    labels = AnswerLabels(question.answers for question in found)
    texts, contexts = ([getattr(q, name) for q in found] for name in QUESTION_KEYS[:2])
    return Records(tuple(texts), labels, (), source, tuple(contexts))


def _report(records, numbers, predictions, weights=None):
    return answer_report(
        predictions,
        [[text for text, _ in records.labels.answers[n]] for n in numbers],
        [records.second_texts[n] for n in numbers],
        sample_weight=weights,
    )


def _best_answers(windows, numbers, scores):
    """Return the best answer of all windows of each question, by the position of the question.

    It is its probability, that of no answer, a tuple of the text and its first character, and the
    position of one of the windows.
    """
    best: dict[int, tuple[float, float, tuple[str, int], int]] = {}
    for number, score, none, answer in _found(windows, numbers, scores):
        question = int(windows.question[numbers[number]])
        before = best.get(question, (-1.0, 1.0, ("", 0), number))
        if score <= before[0]:
            score, answer = before[0], before[2]
        best[question] = score, min(none, before[1]), answer, number
    return best


def _found(windows, numbers, scores):
    """Yield position, probability, that of no answer, and best answer of each window.

    An answer is its text and its first character in the context.
    """
    from keras_efficient.metrics._best_spans import best_spans

    for begin in range(0, len(numbers), _WINDOWS):
        part = numbers[begin : begin + _WINDOWS]
        logits = np.swapaxes(scores[begin : begin + _WINDOWS], 1, 2)
        context = np.zeros((len(part), logits.shape[2]), bool)
        for row, number in enumerate(part):
            context[row, : len(windows.ends[number])] = windows.ends[number] > 0
        spans = best_spans(logits, context)
        for row, (first, last, score, none) in enumerate(zip(*map(np.asarray, spans), strict=True)):
            start, end = windows.starts[part[row]][first], windows.ends[part[row]][last]
            text = windows.records.second_texts[windows.question[part[row]]]
            yield begin + row, float(score), float(none), (text[start:end], int(start))


def _decoded(context, answer, start, end, score, none):
    if not 0 <= start <= end <= len(context) or context[start:end] != answer:
        raise ValueError("not an answer with its characters in the context")
    if not (math.isfinite(score) and math.isfinite(none)):
        raise ValueError("not a finite score for each question")
    return {
        "answer": answer,
        "start": int(start),
        "end": int(end),
        "score": float(score),
        "no_answer_score": float(none),
    }


@functools.cache
def _loss_class(keras):
    class SpanCrossentropy(keras.losses.SparseCategoricalCrossentropy):
        """Cross-entropies of the first and the last token, `[batch, 2]`."""

        def call(self, y_true, y_pred):
            # The third label is the number of the window.
            return super().call(y_true[:, :2], y_pred)

    return SpanCrossentropy


def _both_right(y_true, y_pred):
    """Return 1 for each window whose first and last token are right, otherwise 0, `[batch]`."""
    import tensorflow as tf

    found = tf.argmax(y_pred, axis=-1, output_type=tf.int32)
    right = found == tf.cast(y_true[:, :2], tf.int32)
    return tf.cast(tf.reduce_all(right, axis=-1), tf.float32)
