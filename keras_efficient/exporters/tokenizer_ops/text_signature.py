"""The signature of an export that takes strings, and its expected outputs."""

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.exporters._signature import call_by_name
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_function

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

    def function(self, tokens):
        """Return the `tf.function`; `tokens` is the concrete function of the token signature."""
        return text_function(tokens, self.tokenizer, self.labels, task=self.task)

    def samples(self):
        """Return `TEXTS` by the names of the signature's inputs, as lists."""
        return samples(self.task)

    def reference(self, flavor, model):
        """Return the answers in memory to `TEXTS`, tokenized in Python, as float arrays."""
        found = []
        for rows in self._tokens():
            arrays = {name: rows[role][None] for role, name in self.tokenizer.inputs.items()}
            outputs = call_by_name(flavor, model, self.features, arrays)
            found.append(outputs["logits"] if "logits" in outputs else next(iter(outputs.values())))
        logits = tf.constant(np.concatenate(found), tf.float32)
        answers = self.task.serve(logits, self.labels)
        return {name: x.numpy() for name, x in answers.items() if x.dtype.is_floating}

    def _tokens(self):
        texts = list(self.samples().values())
        if len(texts) == 1:
            ids = self.tokenizer.encode(*texts)
            segments = [np.zeros_like(row) for row in ids]
        else:
            ids, segments, *_ = self.tokenizer.encode_pairs(*texts)
        for row, segment in zip(ids, segments, strict=True):
            yield {"ids": row, "mask": np.ones_like(row), "segments": segment}


def samples(task) -> dict[str, list[str]]:
    """Return `TEXTS`, or pairs of them, by the names of the inputs of a task's signature."""
    if task.texts == 1:
        return {"text": list(TEXTS)}
    return {"text": list(TEXTS), "second_text": [*TEXTS[2:], *TEXTS[:2]]}
