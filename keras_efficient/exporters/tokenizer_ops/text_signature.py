"""The signature of an export that takes strings, and what it must answer."""

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.exporters._signature import computed
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_function

#: What both tokenizers are compared on, through the model: plain, empty, long and odd.
TEXTS = (
    "A good film.",
    "",
    "Überraschend ﬁne — 电影 ✨👩‍🚀 naïve\u200b\tcafe\u0301 [SEP] 100%!!",
    "far too long " * 400,
)


class TextSignature:
    """Strings in; probabilities, labels and the model's outputs out.

    Args:
        tokenizer: `data.Tokenizer` of the model.
        labels: list of str by class, or None: their numbers.
        features: `Features` of the model, whose names must be the tokenizer's.

    Raises:
        InputError: the tokenizer makes other inputs than the model takes, or is of a kind that has
            no form in the graph.
    """

    def __init__(self, tokenizer, labels, features):
        if set(tokenizer.inputs.values()) != set(features.arrays):
            raise InputError(
                "The text signature needs a tokenizer that makes what the model takes: "
                f"{sorted(features.arrays)}. Received: one that makes "
                f"{sorted(tokenizer.inputs.values())}. Give `inputs=` to the Tokenizer."
            )
        self.tokenizer, self.labels, self.features = tokenizer, labels, features

    def function(self, tokens):
        """The `tf.function`; `tokens` is the concrete function of the token signature."""
        return text_function(tokens, self.tokenizer, self.labels)

    def reference(self, flavor, model):
        """What the model in memory answers to `TEXTS`, tokenised in Python: a dict of arrays."""
        found = []
        for ids in self.tokenizer.encode(TEXTS):
            rows = {"ids": ids, "mask": np.ones_like(ids), "segments": np.zeros_like(ids)}
            arrays = {name: rows[role][None] for role, name in self.tokenizer.inputs.items()}
            outputs = computed(flavor, model, self.features, arrays)
            found.append(outputs["logits"] if "logits" in outputs else next(iter(outputs.values())))
        logits = np.concatenate(found)
        one = logits.shape[-1] == 1
        probabilities = tf.sigmoid(logits) if one else tf.nn.softmax(logits)
        return {"probabilities": probabilities.numpy()}
