"""Records in, tokenised, length-bucketed and dynamically padded `tf.data` batches out.

Importing this room imports no TensorFlow: `text` is loaded on first use. (Its file is called
`text_dataset.py`, so that `ke.data.text` is always the function.)
"""

from keras_efficient.data.buckets import choose_buckets, padded_tokens
from keras_efficient.data.reading import read_records
from keras_efficient.data.records import Records, require_classes, split
from keras_efficient.data.text_stats import TextStats
from keras_efficient.data.tokenizer import HUGGING_FACE, KERASHUB, Tokenizer, as_tokenizer
from keras_efficient.lazy import lazily

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
__getattr__, __dir__ = lazily(__name__, {"text": "keras_efficient.data.text_dataset"})
