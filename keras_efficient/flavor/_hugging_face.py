"""Properties of Hugging Face's TensorFlow models: token losses and BERT's attention."""

import sys
from typing import Any

import tensorflow as tf
import tf_keras

from keras_efficient.flavor._forward import EXAMPLES
from keras_efficient.flavor._typing import Model

_TOKEN_LOSSES = {
    "TFCausalLanguageModelingLoss",
    "TFMaskedLanguageModelingLoss",
    "TFNextSentencePredictionLoss",
    "TFTokenClassificationLoss",
}


def loss_denominator(model: Model, data: Any) -> Any:
    """Return the denominator of the loss that a model computes in its own `train_step`.

    Token losses leave out labels of -100 and divide by the number of the others.
    """
    mixins = {cls.__name__ for cls in type(model).__mro__}
    if not getattr(model, "_using_dummy_loss", False) or not mixins & _TOKEN_LOSSES:
        return EXAMPLES
    x, y, _ = tf_keras.utils.unpack_x_y_sample_weight(data)
    labels = x.get("labels") if y is None else y
    labels = labels.get("labels") if isinstance(labels, dict) else labels
    if labels is None:
        return EXAMPLES
    causal = "TFCausalLanguageModelingLoss" in mixins
    if causal and not mixins & {"TFMaskedLanguageModelingLoss"}:
        # Decoders compare with the next token; encoder-decoders receive shifted labels.
        labels = labels if model.config.is_encoder_decoder else labels[:, 1:]
    counted = labels >= 0 if "TFTokenClassificationLoss" in mixins else labels != -100
    return tf.reduce_sum(tf.cast(counted, tf.float32))


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
