"""The signature of an export that takes strings, and its expected outputs."""

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._answer_labels import AnswerLabels
from keras_efficient.data._question_windows import QuestionWindows
from keras_efficient.data._records import Records
from keras_efficient.data._tokenizer import MASK_TOKENS
from keras_efficient.exporters._signature import call_by_name
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_function, text_tokenizer
from keras_efficient.metrics._labelled_batches import joined

#: Texts on which the tokenizers in the graph and in Python are compared, through the model.
TEXTS = (
    "A good film.",
    "",
    "Überraschend ﬁne — 电影 ✨👩‍🚀 naïve\u200b\tcafe\u0301 [SEP] 100%!!",
    "far too long " * 400,
)


class TextSignature:
    """A signature from strings to the answers of a task and the model's outputs.

    Args:
        task: `tasks.Task` of the model.
        tokenizer: `data.Tokenizer` of the model.
        labels: list of str by class; None for the numbers of the classes.
        features: `Features` of the model, with the names of the tokenizer's outputs.

    Raises:
        InputError: the outputs of the tokenizer are not the inputs of the model.
    """

    def __init__(self, task, tokenizer, labels, features):
        if set(tokenizer.inputs.values()) != set(features.arrays):
            raise InputError(
                "The text signature needs a tokenizer whose outputs are the model's inputs, "
                f"{sorted(features.arrays)}. Received: one with the outputs "
                f"{sorted(tokenizer.inputs.values())}. Give `inputs=` to the Tokenizer."
            )
        self.task, self.tokenizer, self.labels = task, tokenizer, labels
        self.features = features

    def function(self, tokens, model):
        """Return the `tf.function`; `tokens` is the concrete function of the token signature."""
        if not self.task.generates:
            return text_function(tokens, self.tokenizer, self.labels, task=self.task)
        tokenize = text_tokenizer(self.tokenizer, self.task)

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.string, name="text")], autograph=False
        )
        def serve(text):
            return self.task.answer(model, tokenize(text), self.tokenizer)

        return serve

    def samples(self):
        """Return `TEXTS` by the names of the signature's inputs, as lists."""
        return samples(self.task, self.tokenizer)

    def reference(self, flavor, model):
        """Return the answers in memory to `TEXTS`, tokenized in Python, as float arrays."""
        found = []
        for rows, words in self._tokens():
            inputs = self.tokenizer.inputs.items()
            arrays = {name: rows[role] for role, name in inputs if role in rows}
            if self.task.generates:
                tensors = {name: tf.constant(array) for name, array in arrays.items()}
                answers = self.task.answer(model, tensors, self.tokenizer)
            else:
                outputs = call_by_name(flavor, model, self.features, arrays)
                scores = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
                answers = self.task.serve(tf.constant(scores, tf.float32), self.labels, *words)
            found.append({k: x.numpy() for k, x in answers.items() if x.dtype.is_floating})
        return {name: joined([answers[name] for answers in found]) for name in found[0]}

    def _tokens(self):
        """Yield the features of each text and, for other heads than of texts, its words."""
        texts = list(self.samples().values())
        if self.task.head == "span":
            yield from self._windows(*texts)
            return
        if self.task.generates:
            # Together, since tokens that are drawn depend on the place of a text in its batch.
            yield padded_ids(self.tokenizer, *texts), ()
            return
        words: list = [()] * len(TEXTS)
        if self.task.head == "token":
            ids, spans, *_ = self.tokenizer.encode_words(*texts)
            segments = [np.zeros_like(row) for row in ids]
            words = [(_words(span),) for span in spans]
        elif len(texts) == 1:
            ids = self.tokenizer.encode(*texts)
            segments = [np.zeros_like(row) for row in ids]
        else:
            ids, segments, *_ = self.tokenizer.encode_pairs(*texts)
        vocabulary = None
        if self.task.head == "masked_token":
            vocabulary = tf.constant(self.tokenizer.vocabulary)
        for row, segment, of in zip(ids, segments, words, strict=True):
            found = {"ids": row, "mask": np.ones_like(row), "segments": segment}
            if vocabulary is not None:
                positions = np.flatnonzero(row == self.tokenizer.mask_id).astype(np.int32)
                number = tf.constant([len(positions)])
                of = ({"masked": number, "vocabulary": vocabulary},)
                found["mask_positions"] = positions if len(positions) else np.zeros(1, np.int32)
            yield {role: values[None] for role, values in found.items()}, of

    def _windows(self, questions, contexts):
        """Yield the features of the windows of each context, and their words."""
        for question, context in zip(questions, contexts, strict=True):
            records = Records((question,), AnswerLabels([[]]), second_texts=(context,))
            length, stride = self.task.window or (self.tokenizer.max_length, None)
            windows = QuestionWindows(records, self.tokenizer, length, stride)
            mask = [np.ones_like(row) for row in windows.ids]
            ids, mask, segments, starts, ends = (
                joined([row[None] for row in rows])
                for rows in (windows.ids, mask, windows.segments, windows.starts, windows.ends)
            )
            tokens = {
                "starts": tf.constant(starts, tf.int32),
                "ends": tf.constant(ends, tf.int32),
                "rows": tf.zeros([len(windows)], tf.int32),
                "texts": tf.constant([context]),
            }
            ids = np.where(mask > 0, ids, self.tokenizer.pad_id)
            yield {"ids": ids, "mask": mask, "segments": segments}, (tokens,)


def padded_ids(tokenizer, texts) -> dict[str, np.ndarray]:
    """Return "ids" and "mask" of texts, int32 `[texts, tokens]`."""
    rows = tokenizer.encode(texts)
    ids = np.full((len(rows), max(map(len, rows))), tokenizer.pad_id, np.int32)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return {"ids": ids, "mask": mask}


def _words(spans):
    """Return what `TextTokenizer.with_words` tells of a text, of `Tokenizer.encode_words`."""
    starts, ends, word = spans.T
    same = (word[:, None] == word[None]) & (word >= 0)
    found = {
        "first": (word >= 0) & (np.tril(same).sum(1) == 1),
        "starts": np.where(same, starts[None], np.iinfo(np.int32).max).min(1) * (word >= 0),
        "ends": np.where(same, ends[None], 0).max(1),
    }
    return {name: tf.constant(value[None], tf.int32) for name, value in found.items()}


def samples(task, tokenizer) -> dict[str, list[str]]:
    """Return `TEXTS`, or pairs of them, by the names of the inputs of a task's signature.

    For a head of masked tokens they have some.
    """
    columns = [list(TEXTS), [*TEXTS[2:], *TEXTS[:2]]]
    if task.head == "masked_token":
        mask = next((token for token in MASK_TOKENS if token in tokenizer.vocabulary), "")
        columns = [[f"{mask} {text} {mask}{mask}." for text in TEXTS[:3]] + [*TEXTS[3:]]]
    if task.head == "span":
        # Questions are not truncated, and a context in memory is not empty.
        contexts = [text for text in TEXTS if text]
        columns = [["a film?"] * len(contexts), contexts]
    return dict(zip(task.inputs, columns, strict=False))
