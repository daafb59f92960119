"""The decoder of KerasHub's BART."""

from types import SimpleNamespace

import tensorflow as tf

from keras_efficient.generation._decoder import Attention, Decoder


class KerasHubBart(Decoder):
    """The decoder of `keras_hub.models.BartSeq2SeqLM`."""

    def __init__(self, model):
        super().__init__(model)
        self.backbone = model.backbone
        self.blocks = [_block(layer) for layer in self.backbone.decoder_transformer_layers]

    def encode(self, ids, mask):
        """Return the hidden states of texts."""
        return self.model.call_encoder(ids, mask)

    def embed(self, ids, index):
        """Return the embeddings of tokens at a position."""
        backbone = self.backbone
        tokens = backbone.token_embedding(ids[:, None])
        places = backbone.decoder_position_embedding(tokens, start_index=index)
        return backbone.decoder_embeddings_layer_norm(
            backbone.decoder_embeddings_add((tokens, places))
        )

    def logits(self, hidden):
        """Return the logits of the next token."""
        return self.backbone.token_embedding(hidden, reverse=True)[:, 0]


def _block(layer):
    return SimpleNamespace(
        own=_Attention(layer._self_attention_layer),
        own_norm=layer._self_attention_layer_norm,
        cross=_Attention(layer._cross_attention_layer),
        cross_norm=layer._cross_attention_layer_norm,
        feed_forward=lambda x: layer._feedforward_output_dense(
            layer._feedforward_intermediate_dense(x)
        ),
        last_norm=layer._feedforward_layer_norm,
    )


class _Attention(Attention):
    def __init__(self, layer):
        self.layer, self.scale = layer, layer._key_dim**-0.5

    def project(self, name, hidden):
        return tf.transpose(getattr(self.layer, f"_{name}_dense")(hidden), [0, 2, 1, 3])

    def output(self, mixed):
        return self.layer._output_dense(mixed)
