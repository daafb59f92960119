"""Blocks of Model Garden's encoders."""

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


def encoder(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of Model Garden's encoders."""
    if not calls(layer, "official", "TransformerEncoderBlock"):
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

    return described_block(
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
        outputs=itself,
    )
