"""Blocks of KerasHub."""

from keras_efficient.architecture._description import Block, BlockInputs, FeedForward
from keras_efficient.architecture.recognizers.common import (
    bound_arguments,
    calls,
    described_block,
    itself,
    keras_added,
    keras_attention,
)
from keras_efficient.flavor import Layer


def _transformer_block(path, layer, inputs, causal=False):
    return described_block(
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
        outputs=itself,
    )


def encoder(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of KerasHub's encoders."""
    if not calls(layer, "keras_hub", "TransformerEncoder"):
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

    return _transformer_block(path, layer, inputs)


def decoder(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of KerasHub's decoders without an encoder."""
    if not calls(layer, "keras_hub", "TransformerDecoder"):
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

    return _transformer_block(path, layer, inputs, causal=True)


def vit(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of ViT's encoder."""
    if not calls(layer, "keras_hub", "ViTEncoderBlock"):
        return None
    attention, forward = layer.mha, layer.mlp

    def inputs(args, kwargs):
        hidden = bound_arguments(layer, args, kwargs)["inputs"]
        if getattr(hidden, "_keras_mask", None) is not None:
            return None
        return BlockInputs(hidden, None, keras_added)

    return described_block(
        path,
        layer,
        keras_attention(attention),
        attention_norm=layer.layer_norm_1,
        feed_forward=FeedForward(forward.dense_1, forward.dense_2, dropout=forward.dropout),
        feed_forward_norm=layer.layer_norm_2,
        attention_dropout=layer.dropout,
        feed_forward_dropout=forward.dropout,
        norm_first=True,
        inner=(attention, forward),
        inputs=inputs,
        outputs=itself,
    )
