"""Small Transformers of each library with two blocks, and batches with padding for them."""

import functools

import numpy as np
from zoo import (
    CLASSES,
    VOCABULARY,
    _hugging_face,
    _kerashub,
    _model_garden,
    fixed,
    keras_of,
)

LENGTH = 9
#: All tokens, one, none at all, and others.
LENGTHS = (9, 1, 0, 4, 6, 9, 2, 3)


kerashub = functools.partial(_kerashub, 2)
hugging_face = functools.partial(_hugging_face, 2)
garden = functools.partial(_model_garden, 2)


def distilbert(dropout=0.0):
    import transformers

    model = transformers.TFDistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=8,
            n_layers=2,
            n_heads=2,
            hidden_dim=16,
            max_position_embeddings=16,
            dropout=dropout,
            attention_dropout=dropout,
            seq_classif_dropout=dropout,
            num_labels=CLASSES,
        )
    )
    model(model.dummy_inputs)
    return fixed(model)


#: {name: (library, function that makes the model, names of ids, mask and segments)}
MODELS = {
    "kerashub": ("keras", kerashub, ("token_ids", "padding_mask", "segment_ids")),
    "hugging-face": (
        "tf_keras",
        hugging_face,
        ("input_ids", "attention_mask", "token_type_ids"),
    ),
    "distilbert": ("tf_keras", distilbert, ("input_ids", "attention_mask", None)),
    "garden": ("tf_keras", garden, ("input_word_ids", "input_mask", "input_type_ids")),
}


def batch(name, lengths=LENGTHS, length=LENGTH, seed=0):
    """Return features and labels for a model of `MODELS`."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), length)
    values = (
        rng.integers(1, VOCABULARY, shape).astype("int32"),
        (np.arange(length)[None] < np.asarray(lengths)[:, None]).astype("int32"),
        np.zeros(shape, "int32"),
    )
    names = MODELS[name][2]
    features = {key: value for key, value in zip(names, values, strict=True) if key}
    return features, rng.integers(0, CLASSES, len(lengths)).astype("int32")


def library(name):
    return MODELS[name][0]


def keras(name):
    return keras_of(library(name))
