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
        outputs=lambda hidden: [hidden, (None,)],
    )
