"""Recognisers: functions that describe the Transformer blocks of one library.

A recogniser maps a layer to a `Block`, to the reason why a layer of its library cannot be
described, or to None for all other layers. It looks at classes by name, since no library but the
model's own may be imported; and only classes whose `call` is the library's own count. Whatever it
returns is compared with the layer's own results before it is used.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_efficient.architecture._description import (
    Block,
    BlockInputs,
    FeedForward,
    SelfAttention,
)
from keras_efficient.architecture._layer_class import has_library_call, original_class
from keras_efficient.architecture._self_attention import attention_heads, self_attention_projections
from keras_efficient.flavor import Layer

Recognizer = Callable[[str, Layer], Block | str | None]


def _calls(layer: Layer, library: str, name: str) -> bool:
    """Whether a layer's `call` is that of a class called `name` in a library."""
    call = original_class(layer).call
    call = inspect.unwrap(call)
    return call.__qualname__ == f"{name}.call" and call.__module__.partition(".")[0] == library


def bound_arguments(layer: Layer, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a layer's own `call` by name; those left out have their default."""
    signature = inspect.signature(original_class(layer).call)
    bound = signature.bind(layer, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def reason_not_described(norms: tuple, projections: tuple) -> str | None:
    """Why these layers are not described, or None."""
    for norm in norms:
        if not has_library_call(norm, "LayerNormalization.call"):
            return f"its norm {norm.name!r} is a {original_class(norm).__name__}"
        axis = norm.axis if isinstance(norm.axis, int) else tuple(norm.axis)[-1]
        plain = norm.gamma is not None and norm.beta is not None
        if not plain or axis not in (-1, 2) or getattr(norm, "rms_scaling", False):
            return f"its norm {norm.name!r} has other settings than scale and offset"
    for layer in projections:
        if not has_library_call(layer, "Dense.call", "EinsumDense.call"):
            return f"its projection {layer.name!r} is no dense layer"
    return None


def keras_added(mask):
    """What Keras' softmax adds to the scores for a mask of 1 and 0."""
    return -1e9 * (1 - tf.cast(mask, tf.float32))


def _itself(hidden):
    return hidden


def _as_tuple(hidden):
    return (hidden,)


def keras_attention(layer: Layer, causal: bool = False) -> SelfAttention | str:
    """The `SelfAttention` of a library's MultiHeadAttention, or why there is none."""
    projections = self_attention_projections(layer)
    if projections is None:
        return f"its attention, a {original_class(layer).__name__}, may compute something else"
    query, key, value = projections
    heads, scale = attention_heads(layer)
    masked = "added"
    if hasattr(layer, "_flash_attention"):
        # Keras 3 computes attention without dropout by another function than with it.
        masked = "zeroed" if layer._dropout else "overwritten"
    return SelfAttention(
        query=query,
        key=key,
        value=value,
        output=layer._output_dense,
        heads=heads,
        scale=scale,
        dropout=layer._dropout_layer,
        masked=masked,
        causal=causal,
    )


def _block(path, layer, attention, **parts) -> Block | str:
    """The `Block` of these parts, or why they are not described."""
    if isinstance(attention, str):
        return attention
    forward = parts["feed_forward"]
    norms = (parts["attention_norm"], parts["feed_forward_norm"])
    dense = (attention.query, attention.key, attention.value, attention.output)
    reason = reason_not_described(norms, (*dense, forward.intermediate, forward.output))
    return reason or Block(path=path, layer=layer, attention=attention, **parts)


# --- KerasHub ------------------------------------------------------------------------------------


def _keras_hub_block(path, layer, inputs, causal=False):
    return _block(
        path,
        layer,
        keras_attention(layer._self_attention_layer, causal),
        attention_norm=layer._self_attention_layer_norm,
        feed_forward=FeedForward(
            layer._feedforward_intermediate_dense, layer._feedforward_output_dense
        ),
        feed_forward_norm=layer._feedforward_layer_norm,
        attention_dropout=layer._self_attention_dropout,
        feed_forward_dropout=layer._feedforward_dropout,
        norm_first=layer.normalize_first,
        inner=(layer._self_attention_layer,),
        inputs=inputs,
        outputs=_itself,
    )


def _keras_hub(path, layer):
    if not _calls(layer, "keras_hub", "TransformerEncoder"):
        return None

    def inputs(args, kwargs):
        given = bound_arguments(layer, args, kwargs)
        if given["attention_mask"] is not None or given["return_attention_scores"]:
            return None
        hidden, mask = given["inputs"], given["padding_mask"]
        implicit = getattr(hidden, "_keras_mask", None)
        if implicit is not None and mask is not None:
            return None  # Keras combines them.
        mask = implicit if mask is None else mask
        return BlockInputs(hidden, mask, keras_added, given["training"])

    return _keras_hub_block(path, layer, inputs)


def _keras_hub_decoder(path, layer):
    if not _calls(layer, "keras_hub", "TransformerDecoder"):
        return None
    if layer._cross_attention_layer is not None:
        return "it attends to an encoder, too"

    def inputs(args, kwargs):
        given = bound_arguments(layer, args, kwargs)
        others = ("decoder_attention_mask", "self_attention_cache")
        if any(given[name] is not None for name in others) or not given["use_causal_mask"]:
            return None
        hidden, mask = given["decoder_sequence"], given["decoder_padding_mask"]
        if getattr(hidden, "_keras_mask", None) is not None:
            return None
        return BlockInputs(hidden, mask, keras_added, given["training"])

    return _keras_hub_block(path, layer, inputs, causal=True)


# --- Model Garden --------------------------------------------------------------------------------


def _model_garden(path, layer):
    if not _calls(layer, "official", "TransformerEncoderBlock"):
        return None
    if layer._linformer_dim is not None or not layer._use_query_residual:
        return "it projects its keys, or has no residual connection"
    if layer._diff_q_kv_att_layer_norm or layer._output_range:
        return "it normalizes queries and keys apart, or returns a range of its tokens"

    def inputs(args, kwargs):
        given = bound_arguments(layer, args, kwargs)
        hidden, mask = given["inputs"], None
        if isinstance(hidden, list | tuple):
            if len(hidden) != 2:
                return None
            hidden, mask = hidden
        if given["output_range"] is not None or layer._return_attention_scores:
            return None
        # Masks [batch, queries, keys] that `SelfAttentionMask` makes are the same for all queries.
        return BlockInputs(hidden, mask, lambda mask: keras_added(mask[:, 0]))

    return _block(
        path,
        layer,
        keras_attention(layer._attention_layer),
        attention_norm=layer._attention_layer_norm,
        feed_forward=FeedForward(
            layer._intermediate_dense,
            layer._output_dense,
            layer._intermediate_activation_layer,
            layer._inner_dropout_layer,
        ),
        feed_forward_norm=layer._output_layer_norm,
        attention_dropout=layer._attention_dropout,
        feed_forward_dropout=layer._output_dropout,
        norm_first=layer._norm_first,
        inner=(layer._attention_layer,),
        inputs=inputs,
        outputs=_itself,
    )


# --- Hugging Face --------------------------------------------------------------------------------

#: Arguments of a block that ask for something else, unless they are None or False.
_OTHERS = ("head_mask", "encoder_hidden_states", "past_key_value", "output_attentions")


def _hugging_face_inputs(layer, args, kwargs):
    given = bound_arguments(layer, args, kwargs)
    if any(given.get(name) is not None and given.get(name) is not False for name in _OTHERS):
        return None
    mask = given["attention_mask"]
    if mask is not None and (len(mask.shape) != 4 or mask.shape[2] != 1):
        return None
    return BlockInputs(given["hidden_states"], mask, lambda mask: mask[:, 0, 0], given["training"])


_LIKE_BERT = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")


def _hugging_face_bert(path, layer):
    family = next((f for f in _LIKE_BERT if _calls(layer, "transformers", f"TF{f}Layer")), None)
    if family is None:
        return None
    if layer.is_decoder:
        return "it is a decoder"
    attention, end = layer.attention.self_attention, layer.attention.dense_output
    if getattr(attention, "position_embedding_type", "absolute") != "absolute":
        return "its attention has relative positions"

    return _block(
        path,
        layer,
        SelfAttention(
            query=attention.query,
            key=attention.key,
            value=attention.value,
            output=end.dense,
            heads=attention.num_attention_heads,
            scale=1 / math.sqrt(attention.attention_head_size),
            dropout=attention.dropout,
        ),
        attention_norm=end.LayerNorm,
        feed_forward=FeedForward(
            layer.intermediate.dense,
            layer.bert_output.dense,
            layer.intermediate.intermediate_act_fn,
        ),
        feed_forward_norm=layer.bert_output.LayerNorm,
        attention_dropout=end.dropout,
        feed_forward_dropout=layer.bert_output.dropout,
        norm_first=False,
        inner=(layer.attention, attention, end, layer.intermediate, layer.bert_output),
        inputs=functools.partial(_hugging_face_inputs, layer),
        outputs=_as_tuple,
    )


def _hugging_face_albert(path, layer):
    if not _calls(layer, "transformers", "TFAlbertLayer"):
        return None
    attention = layer.attention

    return _block(
        path,
        layer,
        SelfAttention(
            query=attention.query,
            key=attention.key,
            value=attention.value,
            output=attention.dense,
            heads=attention.num_attention_heads,
            scale=1 / math.sqrt(attention.attention_head_size),
            dropout=attention.attention_dropout,
        ),
        attention_norm=attention.LayerNorm,
        feed_forward=FeedForward(layer.ffn, layer.ffn_output, layer.activation),
        feed_forward_norm=layer.full_layer_layer_norm,
        attention_dropout=attention.output_dropout,
        feed_forward_dropout=layer.dropout,
        norm_first=False,
        inner=(attention,),
        inputs=functools.partial(_hugging_face_inputs, layer),
        outputs=_as_tuple,
    )


def _hugging_face_distilbert(path, layer):
    if not _calls(layer, "transformers", "TFTransformerBlock"):
        return None
    attention, forward = layer.attention, layer.ffn

    def inputs(args, kwargs):
        given = bound_arguments(layer, args, kwargs)
        mask = given["attn_mask"]
        if given["head_mask"] is not None or given["output_attentions"] or len(mask.shape) != 2:
            return None
        return BlockInputs(
            given["x"],
            mask,
            lambda mask: -1e30 * (1 - tf.cast(mask, tf.float32)),
            given["training"],
        )

    return _block(
        path,
        layer,
        SelfAttention(
            query=attention.q_lin,
            key=attention.k_lin,
            value=attention.v_lin,
            output=attention.out_lin,
            heads=attention.n_heads,
            scale=1 / math.sqrt(attention.dim // attention.n_heads),
            dropout=attention.dropout,
        ),
        attention_norm=layer.sa_layer_norm,
        feed_forward=FeedForward(forward.lin1, forward.lin2, forward.activation),
        feed_forward_norm=layer.output_layer_norm,
        attention_dropout=None,
        feed_forward_dropout=forward.dropout,
        norm_first=False,
        inner=(attention, forward),
        inputs=inputs,
        outputs=_as_tuple,
    )


#: In the order in which they are asked.
RECOGNIZERS: list[Recognizer] = [
    _keras_hub,
    _keras_hub_decoder,
    _model_garden,
    _hugging_face_bert,
    _hugging_face_albert,
    _hugging_face_distilbert,
]
