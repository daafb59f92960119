"""The signature of an export that takes strings, and its expected outputs."""

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import MASK_TOKENS
from keras_efficient.exporters._signature import call_by_name
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_function
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
        check_inputs(tokenizer, features)
        self.task, self.tokenizer, self.labels = task, tokenizer, labels
        self.features = features

    def function(self, tokens, model):
        """Return the `tf.function`; `tokens` is the concrete function of the token signature."""
        return text_function(tokens, self.tokenizer, self.labels, task=self.task)

    def samples(self):
        """Return `TEXTS` by the names of the signature's inputs, as lists."""
        return samples(self.task, self.tokenizer)

    def reference(self, flavor, model):
        """Return the answers in memory to `TEXTS`, tokenized in Python, as float arrays."""
        found = []
        for rows, words in self._tokens():
            named = self.tokenizer.inputs.items()
            arrays = {name: rows[role][None] for role, name in named}
            outputs = call_by_name(flavor, model, self.features, arrays)
            scores = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
            answers = self.task.serve(tf.constant(scores, tf.float32), self.labels, *words)
            found.append({k: x.numpy() for k, x in answers.items() if x.dtype.is_floating})
        return {name: joined([answers[name] for answers in found]) for name in found[0]}

    def _tokens(self):
        """Yield the features of each text and, for a head of tokens, its words."""
        texts = list(self.samples().values())
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
            yield found, of


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


def check_inputs(tokenizer, features) -> None:
    """Require a tokenizer whose outputs are the model's inputs.

    Raises:
        InputError: they are others.
    """
    if set(tokenizer.inputs.values()) != set(features.arrays):
        raise InputError(
            "The text signature needs a tokenizer whose outputs are the model's inputs, "
            f"{sorted(features.arrays)}. Received: one with the outputs "
            f"{sorted(tokenizer.inputs.values())}. Give `inputs=` to the Tokenizer."
        )


def samples(task, tokenizer) -> dict[str, list[str]]:
    """Return `TEXTS`, or pairs of them, by the names of the inputs of a task's signature.

    For a head of masked tokens they have some.
    """
    if task.head == "masked_token":
        mask = next((token for token in MASK_TOKENS if token in tokenizer.vocabulary), "")
        return {"text": [f"{mask} {text} {mask}{mask}." for text in TEXTS[:3]] + [*TEXTS[3:]]}
    if task.served_texts == 1:
        return {"text": list(TEXTS)}
    return {"text": list(TEXTS), "second_text": [*TEXTS[2:], *TEXTS[:2]]}
