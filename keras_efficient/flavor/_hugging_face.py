"""Recognise BERT's attention among the layers of Hugging Face's TensorFlow models."""

import sys
from typing import Any


def is_bert_self_attention(layer_class: type) -> bool:
    """Whether the `call` of a Hugging Face class is the same code as that of TFBertSelfAttention.

    The library copies it to the classes of similar models.
    """
    if not layer_class.__module__.startswith("transformers."):
        return False
    bert: Any = sys.modules.get("transformers.models.bert.modeling_tf_bert")
    if bert is None:
        from transformers.models.bert import modeling_tf_bert as bert
    own = getattr(getattr(layer_class, "call", None), "__code__", None)
    expected = bert.TFBertSelfAttention.call.__code__
    return own is not None and (own.co_code, own.co_names) == (expected.co_code, expected.co_names)
