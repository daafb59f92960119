"""Records in, tokenised, length-bucketed and dynamically padded `tf.data` batches out.

Importing this room imports no TensorFlow: `text` is loaded on first use. (Its file is called
`text_dataset.py`, so that `ke.data.text` is always the function.)
"""

from keras_efficient.data.buckets import choose_buckets, padded_tokens
from keras_efficient.data.reading import read_records
from keras_efficient.data.records import Records, require_classes, split
from keras_efficient.data.text_stats import TextStats
from keras_efficient.data.tokenizer import HUGGING_FACE, KERASHUB, Tokenizer, as_tokenizer

__all__ = [
    "HUGGING_FACE",
    "KERASHUB",
    "Records",
    "TextStats",
    "Tokenizer",
    "as_tokenizer",
    "choose_buckets",
    "padded_tokens",
    "read_records",
    "require_classes",
    "split",
    "text",
]


def __getattr__(name: str):
    if name == "text":
        from keras_efficient.data.text_dataset import text

        globals()["text"] = text
        return text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
