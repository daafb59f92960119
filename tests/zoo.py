"""A zoo of tiny models, one of each kind that the package supports.

Each entry makes a new, built model with fixed weights, and batches for it. Dropout is off, so that
runs can be compared.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

VOCABULARY, LENGTH, CLASSES = 50, 6, 3


@dataclass(frozen=True)
class Specimen:
    """A model of the zoo: its library, a function that makes it, and batches of `n` examples."""

    name: str
    library: str
    make: Any
    features: Any

    def batch(self, n, seed=0):
        rng = np.random.default_rng(seed)
        ids = rng.integers(1, VOCABULARY, (n, LENGTH)).astype("int32")
        return self.features(ids), rng.integers(0, CLASSES, n).astype("int32")

    def __repr__(self):
        return self.name


def keras_of(library):
    if library == "keras":
        import keras

        return keras
    import tf_keras

    return tf_keras


def fixed(model, spread=0.2):
    """Set the same weights in every process, whatever ran before."""
    rng = np.random.default_rng(0)
    values = [rng.normal(0, spread, w.shape).astype(w.dtype) for w in model.get_weights()]
    model.set_weights(values)
    return model


def _functional(library):
    layers = keras_of(library).layers

    def make():
        ids = layers.Input((None,), dtype="int32", name="ids")
        x = layers.Embedding(VOCABULARY, 8)(ids)
        x = layers.LayerNormalization()(layers.add([x, layers.MultiHeadAttention(2, 4)(x, x)]))
        x = layers.GlobalAveragePooling1D()(layers.Dense(8, activation="relu")(x))
        return fixed(keras_of(library).Model(ids, layers.Dense(CLASSES)(x)))

    return make


def _sequential(library):
    layers = keras_of(library).layers

    def make():
        return fixed(
            keras_of(library).Sequential(
                [
                    layers.Input((None,), dtype="int32"),
                    layers.Embedding(VOCABULARY, 8),
                    layers.GlobalAveragePooling1D(),
                    layers.Dense(CLASSES),
                ]
            )
        )

    return make


def _subclassed(library):
    keras = keras_of(library)

    class Encoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = keras.layers.Embedding(VOCABULARY, 8)
            self.attend = keras.layers.MultiHeadAttention(2, 4)
            self.head = keras.layers.Dense(CLASSES)

        def call(self, inputs, training=False):
            x = self.embed(inputs["ids"])
            x = x + self.attend(x, x, training=training)
            return self.head(keras.layers.GlobalAveragePooling1D()(x))

    def make():
        model = Encoder()
        model({"ids": np.ones((1, LENGTH), "int32")})
        return fixed(model)

    return make


def kerashub_backbone(family, num_layers=1, dropout=None):
    """A small backbone of KerasHub, with the family's own dropout by default."""
    import keras_hub

    sizes = {
        "vocabulary_size": VOCABULARY,
        "num_layers": num_layers,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "max_sequence_length": 16,
    }
    if family == "Albert":
        sizes["embedding_dim"] = 4
    if dropout is not None:
        sizes["dropout"] = dropout
    return getattr(keras_hub.models, f"{family}Backbone")(**sizes)


def _kerashub(num_layers=1, dropout=0.0):
    import keras_hub

    backbone = kerashub_backbone("Bert", num_layers, dropout)
    return fixed(
        keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES, dropout=dropout)
    )


def hf_config(num_layers=1, dropout=0.0, **overrides):
    import transformers

    return transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES,
        **overrides,
    )


def _hugging_face(num_layers=1, dropout=0.0):
    import transformers

    model = transformers.TFBertForSequenceClassification(hf_config(num_layers, dropout))
    model(model.dummy_inputs)
    return fixed(model)


#: Whether Model Garden is installed, which exists for TensorFlow 2.20 only.
GARDEN = importlib.util.find_spec("official") is not None


def model_garden():
    """Return Model Garden's `nlp.modeling`, or skip the test."""
    if not GARDEN:
        pytest.skip("needs Model Garden, for TensorFlow 2.20: pip install tf-models-official")
    from official.nlp import modeling

    return modeling


def _model_garden(num_layers=1, dropout=0.0):
    networks, models = model_garden().networks, model_garden().models
    encoder = networks.BertEncoder(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=16,
        dropout_rate=dropout,
        attention_dropout_rate=dropout,
        max_sequence_length=16,
    )
    return fixed(models.BertClassifier(encoder, num_classes=CLASSES, dropout_rate=dropout))


def _named(ids, mask, segments):
    return lambda x: {ids: x, mask: np.ones_like(x), segments: np.zeros_like(x)}


ZOO = (
    Specimen("keras-functional", "keras", _functional("keras"), lambda x: x),
    Specimen("keras-sequential", "keras", _sequential("keras"), lambda x: x),
    Specimen("keras-subclassed", "keras", _subclassed("keras"), lambda x: {"ids": x}),
    Specimen(
        "kerashub-bert", "keras", _kerashub, _named("token_ids", "padding_mask", "segment_ids")
    ),
    Specimen("tf_keras-functional", "tf_keras", _functional("tf_keras"), lambda x: x),
    Specimen("tf_keras-subclassed", "tf_keras", _subclassed("tf_keras"), lambda x: {"ids": x}),
    Specimen(
        "hugging-face-bert",
        "tf_keras",
        _hugging_face,
        _named("input_ids", "attention_mask", "token_type_ids"),
    ),
    Specimen(
        "model-garden-bert",
        "tf_keras",
        _model_garden,
        _named("input_word_ids", "input_mask", "input_type_ids"),
    ),
)

#: Two models per library, for properties that the contract tests check on the entire zoo.
FEW = tuple(
    specimen
    for specimen in ZOO
    if specimen.name
    in ("keras-functional", "kerashub-bert", "tf_keras-subclassed", "hugging-face-bert")
)
#: Parameters for such a test: `FEW`, and the rest of the zoo under `make test-all`.
FEW_FIRST = [s if s in FEW else pytest.param(s, marks=pytest.mark.full) for s in ZOO]


def full_except(*kept, among=ZOO):
    """Return specimens as parameters, all but those that are `kept` for `make test-all`.

    Args:
        kept: names of specimens, or specimens.
        among: all specimens. Default: the zoo.
    """
    names = {getattr(specimen, "name", specimen) for specimen in kept}
    return [
        pytest.param(
            s,
            id=getattr(s, "name", s),
            marks=[] if getattr(s, "name", s) in names else [pytest.mark.full],
        )
        for s in among
    ]
