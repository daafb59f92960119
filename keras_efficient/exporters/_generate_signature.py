"""The signature of an export that takes token ids and answers with generated texts."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.exporters.tokenizer_ops.text_signature import padded_ids
from keras_efficient.tasks import Task

#: Texts for which the export and the model in memory generate the same.
TEXTS = ("A good film.", "", "far too long " * 400)


class GenerateSignature:
    """A signature from token ids to the answers of a task that generates texts.

    It is for tokenizers that no graph can hold, such as byte-level BPE and SentencePiece: the
    client makes the ids, and the server generates tokens and makes them a text.

    Args:
        task: `tasks.Task` of the model, which `generates`.
        tokenizer: `data.Tokenizer` of the model.

    Raises:
        InputError: the task cannot generate with this tokenizer.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer):
        task.check_tokenizer(tokenizer)
        self.task, self.tokenizer = task, tokenizer

    def function(self, tokens: Any, model: Any) -> Any:
        """Return the `tf.function` of token ids and their mask; `tokens` is not used."""
        names = [self.tokenizer.inputs[role] for role in ("ids", "mask")]

        @tf.function(
            input_signature=[tf.TensorSpec([None, None], tf.int32, name=name) for name in names],
            autograph=False,
        )
        def generate(*tensors):
            features = dict(zip(names, tensors, strict=True))
            return self.task.answer(model, features, self.tokenizer)

        return generate

    def samples(self) -> dict[str, np.ndarray]:
        """Return the tokens of `TEXTS` by the names of the signature's inputs."""
        found = padded_ids(self.tokenizer, TEXTS)
        return {self.tokenizer.inputs[role]: array for role, array in found.items()}

    def reference(self, flavor: Any, model: Any) -> dict[str, np.ndarray]:
        """Return the answers in memory, those that are floats."""
        tensors = {name: tf.constant(array) for name, array in self.samples().items()}
        answers = self.task.answer(model, tensors, self.tokenizer)
        return {name: x.numpy() for name, x in answers.items() if x.dtype.is_floating}
