"""A transformers `TF...ForMaskedLM` that predicts the tokens at masked positions only."""

import functools
import inspect
from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError


@functools.cache
def at_mask_positions(cls: type) -> type:
    """Return a subclass of a `TF...ForMaskedLM` class with the input "mask_positions".

    Its logits are `[batch, masked, vocabulary]`: the product with the vocabulary is computed for
    these positions alone. Without that input they are those of all positions.

    Raises:
        InputError: the class's head is of an unknown kind.
    """
    from transformers.modeling_tf_outputs import TFMaskedLMOutput
    from transformers.modeling_tf_utils import unpack_inputs

    def computed(model, positions, training, **inputs):
        inputs = {name: value for name, value in inputs.items() if value is not None}
        found = getattr(model, model.base_model_prefix)(
            **inputs, return_dict=True, training=training
        )
        hidden = found.last_hidden_state
        if positions is not None:
            hidden = tf.gather(hidden, tf.cast(positions, tf.int32), batch_dims=1)
        return TFMaskedLMOutput(
            logits=_head(model, hidden, training),
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )

    # transformers reads the names of the inputs from the signature of `call`.
    @unpack_inputs
    def call(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        mask_positions=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        training=False,
    ):
        return computed(
            self,
            mask_positions,
            training,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )

    @unpack_inputs
    def call_without_segments(
        self,
        input_ids=None,
        attention_mask=None,
        mask_positions=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        training=False,
    ):
        return computed(
            self,
            mask_positions,
            training,
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )

    segments = "token_type_ids" in inspect.signature(cls.call).parameters

    @property
    def dummy_inputs(self):
        ids = tf.constant([[2, 3, 4]], tf.int32)
        found = {"input_ids": ids, "attention_mask": tf.ones_like(ids)}
        if segments:
            found["token_type_ids"] = tf.zeros_like(ids)
        return found | {"mask_positions": tf.constant([[1]], tf.int32)}

    @property
    def input_signature(self):
        positions = tf.TensorSpec([None, None], tf.int32, name="mask_positions")
        return {**cls.input_signature.fget(self), "mask_positions": positions}

    # The name of the class is that of the folder's configuration, and it is one of transformers.
    members = {
        "__module__": cls.__module__,
        "call": call if segments else call_without_segments,
        "dummy_inputs": dummy_inputs,
        "input_signature": input_signature,
    }
    return type(cls)(cls.__name__, (cls,), members)


def head_variables(model: Any) -> list:
    """Return kernel, bias, scale, offset and output bias of the head of a `TF...ForMaskedLM`.

    Raises:
        InputError: the head is of an unknown kind.
    """
    if hasattr(model, "mlm"):
        head = model.mlm.predictions
        dense, norm, bias = head.transform.dense, head.transform.LayerNorm, head.bias
    elif hasattr(model, "lm_head") and hasattr(model.lm_head, "layer_norm"):
        dense, norm, bias = model.lm_head.dense, model.lm_head.layer_norm, model.lm_head.bias
    elif hasattr(model, "vocab_projector"):
        dense, norm = model.vocab_transform, model.vocab_layer_norm
        bias = model.vocab_projector.bias
    else:
        raise InputError(
            "Masked language modelling knows the heads of BERT, DistilBERT, RoBERTa and their "
            f"relatives. Received: {type(model).__name__}. Take a model of these architectures, or "
            "library='keras'."
        )
    return [dense.kernel, dense.bias, norm.gamma, norm.beta, bias]


def _head(model, hidden, training):
    if hasattr(model, "mlm"):
        return model.mlm(sequence_output=hidden, training=training)
    if hasattr(model, "lm_head"):
        return model.lm_head(hidden)
    x = model.vocab_layer_norm(model.act(model.vocab_transform(hidden)))
    return model.vocab_projector(x)
