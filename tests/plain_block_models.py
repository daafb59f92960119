"""Models whose Transformer blocks are made of the library's plain layers."""

import numpy as np
from zoo import CLASSES, VOCABULARY, fixed, keras_of

WIDTH, LENGTH = 8, 7


def block_class(library, norm_first=False):
    """A TransformerBlock as tutorials write it, and one with its norms first."""
    keras = keras_of(library)
    layers = keras.layers

    class TransformerBlock(layers.Layer):
        def __init__(self, dropout=0.0, **kwargs):
            super().__init__(**kwargs)
            self.att = layers.MultiHeadAttention(num_heads=2, key_dim=4)
            self.ffn = keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(WIDTH)])
            self.norm_1 = layers.LayerNormalization(epsilon=1e-6)
            self.norm_2 = layers.LayerNormalization(epsilon=1e-6)
            self.dropout_1, self.dropout_2 = layers.Dropout(dropout), layers.Dropout(dropout)

        def call(self, inputs, attention_mask=None, training=None):
            x = self.norm_1(inputs) if norm_first else inputs
            x = self.att(x, x, attention_mask=attention_mask)
            x = inputs + self.dropout_1(x, training=training)
            if norm_first:
                y = self.ffn(self.norm_2(x))
                return x + self.dropout_2(y, training=training)
            x = self.norm_1(x)
            y = self.dropout_2(self.ffn(x), training=training)
            return self.norm_2(x + y)

    return TransformerBlock


def subclassed(library, norm_first=False, masked=True, dropout=0.0, times=1, wrap=None):
    """A classifier of two such blocks that reads the first token; built, with fixed weights."""
    keras = keras_of(library)
    layers = keras.layers
    Block = block_class(library, norm_first)

    ids = layers.Input((LENGTH,), dtype="int32", name="token_ids")
    mask = layers.Input((LENGTH,), dtype="int32", name="padding_mask")
    x = layers.Embedding(VOCABULARY, WIDTH, name="token_embedding")(ids)
    attended = layers.Reshape((1, LENGTH))(mask) if masked else None
    for number in range(2):
        block = Block(dropout, name=f"block_{number}")
        for _ in range(times):
            x = block(x, attention_mask=attended) if masked else block(x)
    x = x[:, 0] if wrap is None else wrap(x)
    model = keras.Model([ids, mask] if masked else ids, layers.Dense(CLASSES, name="head")(x))
    return fixed(model, 0.3)


def functional(library, norm_first=False, masked=True):
    """The same blocks as layers of a functional model, which no layer holds together."""
    keras = keras_of(library)
    layers = keras.layers
    ids = layers.Input((LENGTH,), dtype="int32", name="token_ids")
    mask = layers.Input((LENGTH,), dtype="int32", name="padding_mask")
    x = layers.Embedding(VOCABULARY, WIDTH, name="token_embedding")(ids)
    attended = layers.Reshape((1, LENGTH))(mask) if masked else None
    for _ in range(2):
        read = layers.LayerNormalization()(x) if norm_first else x
        y = layers.MultiHeadAttention(2, 4)(read, read, attention_mask=attended)
        x = layers.add([x, y])
        if not norm_first:
            x = layers.LayerNormalization()(x)
        y = layers.LayerNormalization()(x) if norm_first else x
        y = layers.Dense(WIDTH)(layers.Dense(16, activation="gelu")(y))
        x = layers.add([x, y])
        if not norm_first:
            x = layers.LayerNormalization()(x)
    model = keras.Model([ids, mask] if masked else ids, layers.Dense(CLASSES)(x[:, 0]))
    return fixed(model, 0.3)


def one_block(library, width=WIDTH, length=LENGTH, masked=True):
    """A classifier of one block of any width, as small as they get."""
    keras = keras_of(library)
    layers = keras.layers
    ids = layers.Input((length,), dtype="int32", name="token_ids")
    mask = layers.Input((length,), dtype="int32", name="padding_mask")
    x = layers.Embedding(VOCABULARY, width)(ids)
    attended = layers.Reshape((1, length))(mask) if masked else None
    y = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=attended)
    x = layers.LayerNormalization()(layers.add([x, y]))
    y = layers.Dense(width)(layers.Dense(16, activation="relu")(x))
    x = layers.LayerNormalization()(layers.add([x, y]))
    inputs = {"token_ids": ids, "padding_mask": mask} if masked else ids
    return fixed(keras.Model(inputs, layers.Dense(CLASSES)(x[:, 0])), 0.3)


def model_class(library, norm_first=False, masked=True, dropout=0.0):
    """A model of a class of its own that makes such blocks; all share one Dropout."""
    keras = keras_of(library)
    layers = keras.layers

    class Encoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = layers.Embedding(VOCABULARY, WIDTH), layers.Dense(CLASSES)
            self.attend = [layers.MultiHeadAttention(2, 4) for _ in range(2)]
            self.norms = [layers.LayerNormalization() for _ in range(4)]
            self.up = [layers.Dense(16, activation="gelu") for _ in range(2)]
            self.down = [layers.Dense(WIDTH) for _ in range(2)]
            self.drop = layers.Dropout(dropout)

        def call(self, inputs, training=False):
            x = self.embedding(inputs["token_ids"])
            mask = inputs["padding_mask"][:, None] if masked else None
            for n in range(2):
                first, second = self.norms[2 * n : 2 * n + 2]
                y = first(x) if norm_first else x
                y = self.attend[n](y, y, attention_mask=mask, training=training)
                x = x + self.drop(y, training=training)
                x = x if norm_first else first(x)
                y = second(x) if norm_first else x
                x = x + self.drop(self.down[n](self.up[n](y)), training=training)
                x = x if norm_first else second(x)
            return self.head(x[:, 0])

    model = Encoder()
    model({key: value[:1] for key, value in data(masked=masked)[0].items()})
    return fixed(model, 0.3)


def data(n=24, masked=True):
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, LENGTH + 1, n)
    mask = (np.arange(LENGTH)[None] < lengths[:, None]).astype("int32")
    ids = rng.integers(1, VOCABULARY, (n, LENGTH)).astype("int32") * mask
    x = {"token_ids": ids, "padding_mask": mask} if masked else {"token_ids": ids}
    return x, rng.integers(0, CLASSES, n).astype("int32")


def inputs(x, make=None):
    """The features in the form that a function of this file has made a model for."""
    if make is model_class:
        return x
    return list(x.values()) if len(x) > 1 else x["token_ids"]
