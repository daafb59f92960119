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
    """A signature from strings to probabilities, labels and the model's outputs.

    Args:
        tokenizer: `data.Tokenizer` of the model.
        labels: list of str by class; None for the numbers of the classes.
        features: `Features` of the model, with the names of the tokenizer's outputs.

    Raises:
        InputError: the outputs of the tokenizer are not the inputs of the model.
    """

    def __init__(self, tokenizer, labels, features):
        if set(tokenizer.inputs.values()) != set(features.arrays):
            raise InputError(
                "The text signature needs a tokenizer whose outputs are the model's inputs, "
                f"{sorted(features.arrays)}. Received: one with the outputs "
                f"{sorted(tokenizer.inputs.values())}. Give `inputs=` to the Tokenizer."
            )
        self.tokenizer, self.labels, self.features = tokenizer, labels, features

    def function(self, tokens):
        """Return the `tf.function`; `tokens` is the concrete function of the token signature."""
        return text_function(tokens, self.tokenizer, self.labels)

    def reference(self, flavor, model):
        """Return the model's outputs in memory for `TEXTS`, tokenized in Python, as arrays."""
        found = []
        for ids in self.tokenizer.encode(TEXTS):
            rows = {"ids": ids, "mask": np.ones_like(ids), "segments": np.zeros_like(ids)}
            arrays = {name: rows[role][None] for role, name in self.tokenizer.inputs.items()}
            outputs = call_by_name(flavor, model, self.features, arrays)
            found.append(outputs["logits"] if "logits" in outputs else next(iter(outputs.values())))
        logits = np.concatenate(found)
        one = logits.shape[-1] == 1
        probabilities = tf.sigmoid(logits) if one else tf.nn.softmax(logits)
        return {"probabilities": probabilities.numpy()}
