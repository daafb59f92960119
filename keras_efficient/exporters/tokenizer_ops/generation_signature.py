"""The signature of an export that continues texts, and its expected outputs."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.exporters.tokenizer_ops.text_signature import (
    check_inputs,
    samples,
)
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_tokenizer
from keras_efficient.generation._generate import generate


class GenerationSignature:
    """A signature from the beginnings of texts to what a language model writes after them.

    Tokenizer, model and the loop over the tokens, with cached keys and values, are one graph.

    Args:
        task: `tasks.Task` of the model, with `max_tokens` and `strategy`.
        tokenizer: `data.Tokenizer` of the model, which `TextTokenizer` supports.
        features: `Features` of the model, with the names of the tokenizer's outputs.
        quantize: how the export stores weights, None as floats. Default: None.

    Raises:
        InputError: the outputs of the tokenizer are not the inputs of the model, there is no place
            for a text beside `max_tokens`, or weights are to be stored as integers.
    """

    def __init__(self, task, tokenizer, features, quantize=None):
        check_inputs(tokenizer, features)
        self.task, self.tokenizer = task, tokenizer
        self.tokenize: Any = text_tokenizer(tokenizer, task, quantize=quantize)
        self.longest = tokenizer.max_length - task.max_tokens

    def function(self, tokens, model):
        """Return the `tf.function`; `tokens`, the function of the token signature, is not used."""
        roles = self.tokenizer.inputs

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")], autograph=False)
        def serve(text):
            features = self.tokenize(text)
            # Without the end token.
            lengths = tf.reduce_sum(features[roles["mask"]], 1) - 1
            return self._continued(model, features[roles["ids"]], lengths)

        return serve

    def samples(self):
        """Return texts by the name of the signature's input, as lists."""
        return samples(self.task, self.tokenizer)

    def reference(self, flavor, model):
        """Return the float answers in memory to `samples`, tokenized in Python, as arrays."""
        rows = self.tokenizer.encode(*self.samples().values(), self.longest)
        lengths = np.array([len(row) - 1 for row in rows], np.int32)
        ids = np.full((len(rows), lengths.max()), self.tokenizer.pad_id, np.int32)
        for padded, row, length in zip(ids, rows, lengths, strict=True):
            padded[:length] = row[:length]
        function: Any = tf.function(
            lambda ids, lengths: self._continued(model, ids, lengths), autograph=False
        )
        found = function(tf.constant(ids), tf.constant(lengths))
        return {name: x.numpy() for name, x in found.items() if x.dtype.is_floating}

    def _continued(self, model, ids, lengths):
        """Return "continuation" and "log_probability" of given tokens."""
        from keras_efficient.models._causal_steps import causal_steps

        steps, tokenizer, most = causal_steps(model), self.tokenizer, self.task.max_tokens
        found = generate(
            steps.step,
            steps.start(ids, tf.shape(ids)[1] + most),
            ids,
            lengths=lengths,
            max_tokens=most,
            end_id=tokenizer.end_id,
            pad_id=tokenizer.pad_id,
            strategy=self.task.strategy,
        )
        columns = tf.range(tf.shape(found.ids)[1])
        written = (columns >= lengths[:, None]) & (columns < found.lengths[:, None])
        with tf.device("CPU:0"):
            pieces = tf.where(written, tf.gather(tf.constant(_pieces(tokenizer)), found.ids), "")
            text = tf.strings.strip(tf.strings.reduce_join(pieces, 1))
        return {"continuation": text, "log_probability": found.scores}


def _pieces(tokenizer):
    """Return what each token of a WordPiece vocabulary adds to a text."""
    special = set(tokenizer.special_tokens)
    return [
        "" if token in special else token[2:] if token.startswith("##") else f" {token}"
        for token in tokenizer.vocabulary
    ]
