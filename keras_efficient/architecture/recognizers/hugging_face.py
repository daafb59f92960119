"""Blocks of Hugging Face's TensorFlow models."""

import functools
import math

import tensorflow as tf

from keras_efficient.architecture._description import Block, BlockInputs, FeedForward, SelfAttention
from keras_efficient.architecture.recognizers.common import (
    as_tuple,
    bound_arguments,
    calls,
    described_block,
)
from keras_efficient.flavor import Layer

#: Arguments of a block that ask for something else, unless they are None or False.
_OTHERS = (
    "head_mask",
    "layer_head_mask",
    "encoder_hidden_states",
    "layer_past",
    "past_key_value",
    "use_cache",
    "output_attentions",
)


def _inputs(layer, args, kwargs):
    given = bound_arguments(layer, args, kwargs)
    if any(given.get(name) is not None and given.get(name) is not False for name in _OTHERS):
        return None
    mask = given.get("attention_mask")
    if mask is not None and (len(mask.shape) != 4 or mask.shape[2] != 1):
        return None
    hidden = given["x"] if "x" in given else given["hidden_states"]
    return BlockInputs(hidden, mask, lambda mask: mask[:, 0, 0], given["training"])


def _attention(layer, output, dropout):
    """The `SelfAttention` of a layer with the names of BERT's."""
    return SelfAttention(
        query=layer.query,
        key=layer.key,
        value=layer.value,
        output=output,
        heads=layer.num_attention_heads,
        scale=1 / math.sqrt(layer.attention_head_size),
        dropout=dropout,
    )


_LIKE_BERT = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")


def bert(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of BERT and the families with its code."""
    family = next((f for f in _LIKE_BERT if calls(layer, "transformers", f"TF{f}Layer")), None)
    if family is None:
        return None
    if layer.is_decoder:
        return "it is a decoder"
    attention, end = layer.attention.self_attention, layer.attention.dense_output
    if getattr(attention, "position_embedding_type", "absolute") != "absolute":
        return "its attention has relative positions"

    return described_block(
        path,
        layer,
        _attention(attention, end.dense, attention.dropout),
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
        inputs=functools.partial(_inputs, layer),
        outputs=as_tuple,
    )


def albert(path: str, layer: Layer) -> Block | str | None:
    """Describe the block of ALBERT."""
    if not calls(layer, "transformers", "TFAlbertLayer"):
        return None
    attention = layer.attention

    return described_block(
        path,
        layer,
        _attention(attention, attention.dense, attention.attention_dropout),
        attention_norm=attention.LayerNorm,
        feed_forward=FeedForward(layer.ffn, layer.ffn_output, layer.activation),
        feed_forward_norm=layer.full_layer_layer_norm,
        attention_dropout=attention.output_dropout,
        feed_forward_dropout=layer.dropout,
        norm_first=False,
        inner=(attention,),
        inputs=functools.partial(_inputs, layer),
        outputs=as_tuple,
    )


def distilbert(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of DistilBERT."""
    if not calls(layer, "transformers", "TFTransformerBlock"):
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

    return described_block(
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
        outputs=as_tuple,
    )


def gpt2(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of GPT-2, in which one layer projects queries, keys and values."""
    if not calls(layer, "transformers", "TFBlock"):
        return None
    attention, forward = layer.attn, layer.mlp
    if hasattr(layer, "crossattention"):
        return "it attends to an encoder, too"

    return described_block(
        path,
        layer,
        SelfAttention(
            query=attention.c_attn,
            key=attention.c_attn,
            value=attention.c_attn,
            output=attention.c_proj,
            heads=attention.n_head,
            scale=(attention.embed_dim // attention.n_head) ** -0.5 if attention.scale else 1.0,
            dropout=attention.attn_dropout,
            causal=True,
        ),
        attention_norm=layer.ln_1,
        feed_forward=FeedForward(forward.c_fc, forward.c_proj, forward.act),
        feed_forward_norm=layer.ln_2,
        attention_dropout=attention.resid_dropout,
        feed_forward_dropout=forward.dropout,
        norm_first=True,
        inner=(attention, forward),
        inputs=functools.partial(_inputs, layer),
        # The second one stands for keys and values to cache.
        outputs=lambda hidden, inputs: [hidden, (None,)],
    )


_LIKE_VIT = {"ViT": "vit_output", "DeiT": "deit_output"}


def vit(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of ViT or DeiT."""
    family = next((f for f in _LIKE_VIT if calls(layer, "transformers", f"TF{f}Layer")), None)
    if family is None:
        return None
    attention, end = layer.attention.self_attention, layer.attention.dense_output
    last = getattr(layer, _LIKE_VIT[family])

    return described_block(
        path,
        layer,
        _attention(attention, end.dense, attention.dropout),
        attention_norm=layer.layernorm_before,
        feed_forward=FeedForward(
            layer.intermediate.dense,
            last.dense,
            layer.intermediate.intermediate_act_fn,
        ),
        feed_forward_norm=layer.layernorm_after,
        attention_dropout=end.dropout,
        feed_forward_dropout=last.dropout,
        norm_first=True,
        inner=(layer.attention, attention, end, layer.intermediate, last),
        inputs=functools.partial(_inputs, layer),
        outputs=as_tuple,
    )


#: Families with the code of BART's encoder, and whether their norms come first.
_LIKE_BART = {
    "Bart": False,
    "BlenderbotSmall": False,
    "Marian": False,
    "Blenderbot": True,
    "MBart": True,
    "Pegasus": True,
}


def bart_encoder(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of the encoder of BART and the families with its code."""
    family = next(
        (f for f in _LIKE_BART if calls(layer, "transformers", f"TF{f}EncoderLayer")), None
    )
    if family is None:
        return None
    attention = layer.self_attn

    def inputs(args, kwargs):
        given = bound_arguments(layer, args, kwargs)
        if given["layer_head_mask"] is not None or layer.config.output_attentions:
            return None
        # The encoder makes a mask [batch, 1, queries, keys] that is the same for all queries.
        return BlockInputs(
            given["hidden_states"],
            given["attention_mask"],
            lambda mask: mask[:, 0, 0],
            given["training"],
        )

    return described_block(
        path,
        layer,
        SelfAttention(
            query=attention.q_proj,
            key=attention.k_proj,
            value=attention.v_proj,
            output=attention.out_proj,
            heads=attention.num_heads,
            scale=attention.scaling,
            dropout=attention.dropout,
        ),
        attention_norm=layer.self_attn_layer_norm,
        feed_forward=FeedForward(
            layer.fc1, layer.fc2, layer.activation_fn, layer.activation_dropout
        ),
        feed_forward_norm=layer.final_layer_norm,
        attention_dropout=layer.dropout,
        feed_forward_dropout=layer.dropout,
        norm_first=_LIKE_BART[family],
        inner=(attention,),
        inputs=inputs,
        # The second one stands for the attention scores.
        outputs=lambda hidden, inputs: (hidden, None),
    )


def t5_encoder(path: str, layer: Layer) -> Block | str | None:
    """Describe a block of T5's encoder, and of those with its code (mT5, FLAN-T5)."""
    if not calls(layer, "transformers", "TFT5Block"):
        return None
    if layer.is_decoder:
        return "it is a decoder"
    start, end = layer.layer
    attention, forward = start.SelfAttention, end.DenseReluDense
    gated = calls(forward, "transformers", "TFT5DenseGatedActDense")

    def inputs(args, kwargs):
        given = bound_arguments(layer, args, kwargs)
        # An encoder has no cache, whatever `use_cache` says.
        others = set(_OTHERS) - {"use_cache"}
        if any(given.get(name) is not None and given.get(name) is not False for name in others):
            return None
        hidden, mask, bias = (
            given[name] for name in ("hidden_states", "attention_mask", "position_bias")
        )
        if mask is not None and (len(mask.shape) != 4 or mask.shape[2] != 1):
            return None
        if bias is None:
            if not attention.has_relative_attention_bias:
                return None
            # The first block makes the bias for all blocks, the mask included.
            length = tf.shape(hidden)[1]
            bias = attention.compute_bias(length, length)
            bias = bias if mask is None else tf.cast(bias, mask.dtype) + mask
        return BlockInputs(
            hidden, mask, lambda mask: mask[:, 0, 0], given["training"], position_bias=bias
        )

    return described_block(
        path,
        layer,
        SelfAttention(
            query=attention.q,
            key=attention.k,
            value=attention.v,
            output=attention.o,
            heads=attention.n_heads,
            scale=1.0,
            dropout=attention.dropout,
        ),
        attention_norm=start.layer_norm,
        feed_forward=FeedForward(
            forward.wi_0 if gated else forward.wi,
            forward.wo,
            forward.act,
            forward.dropout,
            forward.wi_1 if gated else None,
        ),
        feed_forward_norm=end.layer_norm,
        attention_dropout=start.dropout,
        feed_forward_dropout=end.dropout,
        norm_first=True,
        inner=(start, attention, end, forward),
        inputs=inputs,
        outputs=lambda hidden, inputs: (hidden, None, inputs.position_bias),
    )
