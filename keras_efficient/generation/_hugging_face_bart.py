"""The decoder of Hugging Face's TFBart."""

from types import SimpleNamespace

import tensorflow as tf

from keras_efficient.generation._decoder import Attention, Decoder


class HuggingFaceBart(Decoder):
    """The decoder of `transformers.TFBartForConditionalGeneration`."""

    def __init__(self, model):
        super().__init__(model)
        self.decoder = model.model.decoder
        self.blocks = [_block(layer) for layer in self.decoder.layers]

    def encode(self, ids, mask):
        """Return the hidden states of texts."""
        encoder = self.model.model.encoder
        return encoder(
            input_ids=ids, attention_mask=mask, return_dict=True, training=False
        ).last_hidden_state

    def embed(self, ids, index):
        """Return the embeddings of tokens at a position."""
        tokens = self.decoder.embed_tokens(ids[:, None]) * self.decoder.embed_scale
        places = self.decoder.embed_positions(None, position_ids=index[None])
        return self.decoder.layernorm_embedding(tokens + places)

    def logits(self, hidden):
        """Return the logits of the next token."""
        table = tf.cast(tf.convert_to_tensor(self.model.model.shared.weights[0]), hidden.dtype)
        return self.model.bias_layer(tf.matmul(hidden[:, 0], table, transpose_b=True))


def _block(layer):
    return SimpleNamespace(
        own=_Attention(layer.self_attn),
        own_norm=layer.self_attn_layer_norm,
        cross=_Attention(layer.encoder_attn),
        cross_norm=layer.encoder_attn_layer_norm,
        feed_forward=lambda x: layer.fc2(layer.activation_fn(layer.fc1(x))),
        last_norm=layer.final_layer_norm,
    )


class _Attention(Attention):
    def __init__(self, layer):
        self.layer, self.scale = layer, layer.scaling

    def project(self, name, hidden):
        found = getattr(self.layer, f"{name[0]}_proj")(hidden)
        shape = [*tf.unstack(tf.shape(hidden)[:2]), self.layer.num_heads, self.layer.head_dim]
        found = tf.transpose(tf.reshape(found, shape), [0, 2, 1, 3])
        found.set_shape([None, self.layer.num_heads, None, self.layer.head_dim])
        return found

    def output(self, mixed):
        rows, tokens = tf.unstack(tf.shape(mixed)[:2])
        return self.layer.out_proj(tf.reshape(mixed, [rows, tokens, self.layer.embed_dim]))
