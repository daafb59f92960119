"""The decoder of Hugging Face's TFT5."""

from types import SimpleNamespace

import tensorflow as tf

from keras_efficient.generation._decoder import Attention, Decoder


class HuggingFaceT5(Decoder):
    """The decoder of `transformers.TFT5ForConditionalGeneration`."""

    norm_first = True

    def __init__(self, model):
        super().__init__(model)
        self.decoder = model.decoder
        self.blocks = [_block(block.layer) for block in self.decoder.block]

    def encode(self, ids, mask):
        """Return the hidden states of texts."""
        return self.model.encoder(ids, attention_mask=mask, return_dict=True).last_hidden_state

    def embed(self, ids, index):
        """Return the embeddings of tokens, which do not depend on the position."""
        return self.decoder.embed_tokens(ids[:, None])

    def bias(self, index, columns):
        """Return the bias of the distances, which the first block holds for all of them."""
        layer = self.decoder.block[0].layer[0].SelfAttention
        buckets = layer._relative_position_bucket(
            columns - index,
            bidirectional=False,
            num_buckets=layer.relative_attention_num_buckets,
            max_distance=layer.relative_attention_max_distance,
        )
        table = tf.convert_to_tensor(layer.relative_attention_bias)
        return tf.transpose(tf.gather(table, buckets))[None, :, None]

    def logits(self, hidden):
        """Return the logits of the next token."""
        hidden = self.decoder.final_layer_norm(hidden)[:, 0]
        if not self.model.config.tie_word_embeddings:
            return self.model.lm_head(hidden)
        table = tf.cast(tf.convert_to_tensor(self.model.shared.weights[0]), hidden.dtype)
        return tf.matmul(hidden * self.model.model_dim**-0.5, table, transpose_b=True)


def _block(layers):
    own, cross, last = layers
    return SimpleNamespace(
        own=_Attention(own.SelfAttention),
        own_norm=own.layer_norm,
        cross=_Attention(cross.EncDecAttention),
        cross_norm=cross.layer_norm,
        feed_forward=last.DenseReluDense,
        last_norm=last.layer_norm,
    )


class _Attention(Attention):
    #: The initial weights of queries are scaled instead.
    scale = 1.0

    def __init__(self, layer):
        self.layer = layer

    def project(self, name, hidden):
        found = getattr(self.layer, name[0])(hidden)
        heads, size = self.layer.n_heads, self.layer.key_value_proj_dim
        shape = [*tf.unstack(tf.shape(hidden)[:2]), heads, size]
        found = tf.transpose(tf.reshape(found, shape), [0, 2, 1, 3])
        found.set_shape([None, heads, None, size])
        return found

    def output(self, mixed):
        rows, tokens = tf.unstack(tf.shape(mixed)[:2])
        return self.layer.o(tf.reshape(mixed, [rows, tokens, self.layer.inner_dim]))
