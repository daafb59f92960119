"""Small Transformers of each library with two blocks, and batches with padding for them."""

import numpy as np
from zoo import CLASSES, VOCABULARY, _fixed, hf_config, keras_of, model_garden

LENGTH = 9
#: All tokens, one, none at all, and others.
LENGTHS = (9, 1, 0, 4, 6, 9, 2, 3)


def kerashub(dropout=0.0, **kwargs):
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=dropout,
        max_sequence_length=16,
    )
    return _fixed(
        keras_hub.models.BertTextClassifier(
            backbone, num_classes=CLASSES, dropout=dropout, **kwargs
        )
    )


def hugging_face(dropout=0.0):
    import transformers

    config = hf_config()
    config.num_hidden_layers = 2
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    model = transformers.TFBertForSequenceClassification(config)
    model(model.dummy_inputs)
    return _fixed(model)


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
    return _fixed(model)


def garden(dropout=0.0):
    networks, models = model_garden().networks, model_garden().models
    encoder = networks.BertEncoder(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        dropout_rate=dropout,
        attention_dropout_rate=dropout,
        max_sequence_length=16,
    )
    return _fixed(models.BertClassifier(encoder, num_classes=CLASSES, dropout_rate=dropout))


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
