"""What `ke.architecture.describe` finds in models, and who relies on it."""

import re

import numpy as np
import pytest
from zoo import VOCABULARY, ZOO, hf_config, keras_of, kerashub_backbone

import keras_efficient as ke
from keras_efficient.architecture import recognizers
from keras_efficient.architecture._attention_layers import key_value_projections
from keras_efficient.architecture._description import Block, FeedForward, SelfAttention
from keras_efficient.architecture._output_projections import output_projections

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
#: Ends of the paths of the tables of tokens, positions and segments, of pooling, and of the head.
_EXPECTED = {
    "functional": (r"embedding(_\d+)?/embeddings", None, None, "global_average_pooling1d", "dense"),
    # Its pooling layer is made in the call.
    "subclassed": (r"embedding(_\d+)?/embeddings", None, None, None, "dense"),
    "kerashub-bert": (
        "token_embedding/embeddings",
        "position_embedding/position_embeddings",
        "segment_embedding/embeddings",
        "pooled_dense",
        "logits",
    ),
    "hugging-face-bert": (
        "embeddings/weight",
        "embeddings/position_embeddings",
        "embeddings/token_type_embeddings",
        "pooler",
        "classifier",
    ),
    "model-garden-bert": (
        "word_embeddings/embeddings",
        "position_embedding/_position_embeddings",
        "type_embeddings/embeddings",
        "pooler_transform",
        "logits",
    ),
}


def test_embeddings_pooling_and_heads():
    for specimen in ZOO:
        kind = specimen.name.removeprefix("tf_").removeprefix("keras-")
        expected = _EXPECTED["functional" if kind == "sequential" else kind]
        found = ke.architecture.describe(specimen.make())
        tables = found.embeddings
        parts = (tables.token, tables.position, tables.segment)
        groups = [*([w.path for w in part] for part in parts), [*found.pooling], [*found.heads]]
        for paths, end in zip(groups, expected, strict=True):
            assert len(paths) == (end is not None), (specimen.name, paths)
            assert all(re.search(rf"(^|/){end}(_\d+)?$", path) for path in paths), paths
        assert tables.token[0].shape == (VOCABULARY, 8)
        assert all(layer.name == path.split("/")[-1] for path, layer in found.heads.items())


def test_a_description_prints_as_text():
    import transformers

    model = transformers.TFBertForSequenceClassification(hf_config(2))
    model(model.dummy_inputs)
    assert str(ke.architecture.describe(model)).splitlines() == [
        "2 Transformer blocks, bert/encoder/layer_._0 to bert/encoder/layer_._1:",
        "  attention: 2 heads of 4, to all tokens",
        "  feed-forward: 16 wide, gelu",
        "  normalization: after each part (post-norm)",
        "embeddings:",
        "  token: bert/embeddings/weight [50, 8]",
        "  position: bert/embeddings/position_embeddings [16, 8]",
        "  segment: bert/embeddings/token_type_embeddings [2, 8]",
        "pooling: bert/pooler",
        "heads: classifier",
    ]


def test_the_text_tells_decoders_and_norms_before_the_parts():
    text = str(ke.architecture.describe(kerashub_backbone("GPT2")))
    assert "to earlier tokens only" in text and "before each part (pre-norm)" in text
    assert "16 wide, gelu_approximate" in text and "pooling: none" in text


def _model_with_blocks(library, number=2):
    """A model with blocks whose attention is named otherwise, and end in a kernel of no part."""
    keras = keras_of(library)
    layers = keras.layers

    class Mixer(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.q, self.keys, self.vals, self.out = (layers.Dense(8, name=n) for n in "qkvo")

        def call(self, x):
            weights = keras.activations.softmax(self.q(x)[:, :, None] * self.keys(x)[:, None])
            return self.out((weights * self.vals(x)[:, None])[:, :, 0])

    class MixerBlock(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mixer, self.norm = Mixer(name="mixer"), layers.LayerNormalization(name="norm")
            self.up, self.down = layers.Dense(16, name="up"), layers.Dense(8, name="down")
            self.last = layers.Dense(8, name="last")

        def call(self, x):
            x = self.norm(x + self.mixer(x))
            return self.last(x + self.down(self.up(x)))

    ids = layers.Input((4,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8)(ids)
    for index in range(number):
        x = MixerBlock(name=f"block_{index}")(x)
    return keras.Model(ids, layers.Dense(3)(layers.Flatten()(x)))


def _describe_mixer(path, layer):
    if type(layer).__name__ != "MixerBlock":
        return None
    mixer = layer.mixer
    return Block(
        path=path,
        layer=layer,
        attention=SelfAttention(mixer.q, mixer.keys, mixer.vals, mixer.out, heads=1, scale=1.0),
        attention_norm=layer.norm,
        feed_forward=FeedForward(layer.up, layer.down),
        feed_forward_norm=layer.norm,
        attention_dropout=None,
        feed_forward_dropout=None,
        norm_first=False,
        inner=(),
        inputs=lambda args, kwargs: None,
        outputs=lambda hidden, inputs: hidden,
    )


@libraries
def test_a_recogniser_is_all_that_a_new_family_needs(library, monkeypatch):
    """Its blocks are recomputed and shared, its keys shared, and adapters follow its parts."""
    model = _model_with_blocks(library)
    assert not ke.architecture.describe(model).unknown
    with pytest.raises(ValueError, match="must be a layer to recompute"):
        ke.remat(model)
    monkeypatch.setattr(recognizers, "RECOGNIZERS", [_describe_mixer])
    blocks = ("block_0", "block_1")
    found = ke.architecture.describe(model)
    assert tuple(block.path for block in found.blocks) == blocks and not found.unknown
    assert ke.remat(model).layers == blocks
    ke.remat(model, False)
    assert [*key_value_projections(model)] == ["block_0/mixer", "block_1/mixer"]
    paths = [weight.path for weight in output_projections(model)]
    assert paths == [f"{b}/{end}/kernel" for b in blocks for end in ("mixer/o", "down")]
    ends = output_projections(model, feed_forward_only=True)
    assert [w.path for w in ends] == ["block_0/down/kernel", "block_1/down/kernel"]
    # Keys and values of a block have one variable, and both blocks have the same.
    assert len(ke.share_weights(model, "key_value").tied) == 4
    assert len(ke.share_weights(model, "layers").tied) == 14


@libraries
def test_blocks_that_are_not_described_are_found_by_their_layers(library):
    keras = keras_of(library)
    layers = keras.layers

    class Odd(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.attend, self.dense = layers.MultiHeadAttention(2, 4), layers.Dense(8)

        def call(self, x):
            return x + self.dense(self.attend(x, x))

    ids = layers.Input((4,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8)(ids)
    x = Odd(name="odd_1")(Odd(name="odd_0")(x))
    model = keras.Model(ids, layers.Dense(3)(x))
    found = ke.architecture.describe(model)
    assert found.blocks == () and [*found.unknown] == ["odd_0", "odd_1"]
    assert str(found).splitlines()[:2] == [
        "2 Transformer blocks, odd_0 to odd_1:",
        "  not described: Odd: no norm reads the sum of its inputs and its outputs",
    ]
    assert ke.remat(model).layers == ("odd_0", "odd_1")
    assert len(output_projections(model)) == 4


@libraries
def test_tables_are_told_apart_by_the_names_of_their_layers(library):
    keras = keras_of(library)
    layers = keras.layers

    class TokenTypes(layers.Embedding):
        pass

    class RelativePositions(layers.Embedding):
        pass

    ids = layers.Input((4,), dtype="int32")
    parts = {
        "position": [layers.Embedding(9, 8, name="wpe"), RelativePositions(9, 8, name="a")],
        "segment": [layers.Embedding(2, 8, name="types"), TokenTypes(2, 8, name="b")],
        "token": [layers.Embedding(9, 8, name="prototypes"), layers.Embedding(9, 8, name="words")],
    }
    model = keras.Model(ids, layers.add([layer(ids) for part in parts.values() for layer in part]))
    found = ke.architecture.describe(model).embeddings
    for role, part in parts.items():
        expected = {layer.name for layer in part}
        assert {weight.layer.name for weight in getattr(found, role)} == expected, role


@libraries
def test_an_output_layer_shares_the_token_embeddings_and_not_positions_as_many(library):
    """The first table of the right shape was taken, whatever it embeds."""
    keras = keras_of(library)
    layers = keras.layers
    ids = layers.Input((4,), dtype="int32")
    positions = layers.Embedding(VOCABULARY, 8, name="position_embedding")(ids)
    x = layers.add([positions, layers.Embedding(VOCABULARY, 8, name="words")(ids)])
    model = keras.Model(ids, layers.Dense(VOCABULARY, name="logits")(x))
    tied = ke.share_weights(model, "embeddings").tied
    assert tied == {"logits/kernel": "words/embeddings"}
    words = model.get_layer("words")
    table = np.asarray(ke.flavor.of(model).value(words.weights[0]))
    assert np.array_equal(np.asarray(model.get_layer("logits").kernel), table.T)


def test_a_model_without_weights_is_refused():
    import keras

    with pytest.raises(ValueError, match=r"ke.architecture.describe needs a built model"):
        ke.architecture.describe(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(TypeError):
        ke.architecture.describe(object())
