"""Load Keras 3 models with KerasHub."""

import importlib
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
from keras_hub.src.utils.keras_utils import gelu_approximate
from keras_hub.src.utils.preset_utils import find_subclass

from keras_efficient._errors import InputError, shortened
from keras_efficient.data._read_json import read_json
from keras_efficient.data._tokenizer import KERASHUB, MASK_POSITIONS, Tokenizer, as_tokenizer
from keras_efficient.dtype_policies._keep_float32 import keep_float32
from keras_efficient.flavor._typing import Model
from keras_efficient.models._check_weights import safetensors_files
from keras_efficient.models._checkpoint_folder import (
    check_ids,
    describe,
    is_kerashub_preset,
    load_tokenizer,
)
from keras_efficient.models._classification_head import head_weights, span_head
from keras_efficient.models._initial_weights import initial_weights
from keras_efficient.models._masked_language_model import MaskedLanguageModel
from keras_efficient.models._masked_lm_head import new_head, read_head, warn_new_head
from keras_efficient.models._sentence_encoder import SentenceEncoder
from keras_efficient.models._span_classifier import SpanClassifier
from keras_efficient.models._token_classifier import TokenClassifier
from keras_efficient.models._trained_folder import WEIGHTS

#: Tasks of KerasHub that generate tokens, by head.
_GENERATORS: Any = {
    "next_token": keras_hub.models.CausalLM,
    "decoder": keras_hub.models.Seq2SeqLM,
}
#: Names of inputs by content.
_INPUTS = KERASHUB | MASK_POSITIONS
_DECODER_INPUTS = {
    "ids": "encoder_token_ids",
    "mask": "encoder_padding_mask",
    "target_ids": "decoder_token_ids",
    "target_mask": "decoder_padding_mask",
}


def load_classifier(
    source: Path | str, num_labels: int, seed: int, head: str = "text"
) -> tuple[Model, Tokenizer]:
    """Load a `keras_hub.models.TextClassifier` from a checked folder or a preset name.

    With `head="token"` it is a `TokenClassifier`, with "span" a `SpanClassifier`, with
    "masked_token" a `MaskedLanguageModel`, with "embedding" a `SentenceEncoder`, with
    "next_token" KerasHub's `CausalLM`, and with "decoder" its `Seq2SeqLM`.
    """
    config = (
        read_json(source / "config.json", "the configuration") if isinstance(source, Path) else {}
    )
    hugging_face = bool(config) and not is_kerashub_preset(config)
    # Before the model, which takes longer and more memory.
    tokenizer: Any = load_tokenizer(Path(source), config) if hugging_face else None
    separator = _separator(source, tokenizer) if head == "span" else None
    try:
        model = _build(str(source), num_labels, head, hugging_face, separator, _dropout(config))
    # A folder can make KerasHub fail anywhere.
    except Exception as error:
        raise InputError(
            f"The model must be a Transformer of texts that KerasHub can load. Received: "
            f"{describe(source)}, for which it reports: {shortened(str(error)).rstrip('.')}. "
            "Check the spelling of a preset, or try library='tf_keras'."
        ) from error
    if config.get("hidden_act") == "gelu":
        _exact_gelu(model)
    _set_new_head(model, num_labels, seed, source if hugging_face else None)
    _keep_float32(model)
    inputs = _inputs(model)
    if hugging_face:
        return model, as_tokenizer(tokenizer, inputs=inputs)
    limit = getattr(model.backbone, "max_sequence_length", None) or 512
    words = getattr(model.preprocessor, "tokenizer", None)
    if words is None:
        raise InputError(
            f"A preset must hold a tokenizer. Received: {describe(source)} without one. Save it "
            "again from a task with its preprocessor."
        )
    rows = getattr(model.backbone, "vocabulary_size", None)
    check_ids(words.vocabulary_size() - 1, rows, describe(source))
    encode = _Encoder(model.preprocessor)
    # Without it `fit` takes features, as with every other model here.
    model.preprocessor = None
    pad_id = getattr(encode.preprocessor.tokenizer, "pad_token_id", None) or 0
    return model, Tokenizer(encode, inputs=inputs, pad_id=pad_id, max_length=limit)


def _separator(source, tokenizer):
    if tokenizer is None:
        raise InputError(
            "A model for questions about texts is loaded from a Hugging Face folder, whose "
            f"tokenizer tells which words an answer consists of. Received: {describe(source)}. "
            "Load such a folder."
        )
    return tokenizer.separator


def _build(source, num_labels, head, hugging_face, separator, dropout) -> Any:
    """Return the pretrained model with a new head, and its preprocessor if it is a preset."""
    options: dict[str, Any] = {"preprocessor": None} if hugging_face else {}
    if head == "text" and not dropout:
        options["num_classes"] = num_labels
        return keras_hub.models.TextClassifier.from_preset(source, **options)
    if head in _GENERATORS:
        return _GENERATORS[head].from_preset(source, **options)
    backbone = keras_hub.models.Backbone.from_preset(source, **dropout)
    model = _with_head(backbone, num_labels, head, separator, dropout)
    if not hugging_face:
        model.preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(source)
    return model


def _dropout(config) -> dict[str, float]:
    """Return the rate that a BERT's configuration names, as arguments.

    KerasHub's converter of BERT leaves it out, and all rates are 0.1.
    """
    named = config.get("model_type") == "bert" and "hidden_dropout_prob" in config
    return {"dropout": config["hidden_dropout_prob"]} if named else {}


def _with_head(backbone, num_labels, head, separator, dropout: Any = None) -> Any:
    """Return a model of a backbone and a new head, with a rate of dropout if it is given."""
    dropout = dropout or {}
    if head == "span":
        return SpanClassifier(backbone, separator)
    if head == "token":
        return TokenClassifier(backbone, num_labels, **dropout)
    if head == "masked_token":
        return MaskedLanguageModel(backbone)
    if head == "embedding":
        return SentenceEncoder(backbone)
    if head in _GENERATORS:
        return find_subclass("", _GENERATORS[head], type(backbone))(backbone)
    found: Any = find_subclass("", keras_hub.models.TextClassifier, type(backbone))
    return found(backbone, num_classes=num_labels, **dropout)


def _keep_float32(model: Any):
    """Keep what enters the loss in float32."""
    if isinstance(model, keras_hub.models.CausalLM):
        # The table of tokens computes the logits.
        backbone: Any = model.backbone
        backbone.token_embedding.reverse_dtype = "float32"
        # By which exports know that the outputs are logits.
        model.num_classes = vocabulary_size(model)
        keep_float32(model)
    elif isinstance(model, MaskedLanguageModel):
        keep_float32(model, model.masked_lm_head)
    elif isinstance(model, SentenceEncoder):
        keep_float32(model, model.pooling)
    else:
        keep_float32(model, model.output_dense)


def _set_new_head(model, num_labels, seed, folder=None):
    """Set new weights of the head, or those of a checkpoint if these are its only ones."""
    if isinstance(model, MaskedLanguageModel):
        _set_masked_lm_head(model, folder, seed)
    elif not isinstance(model, keras_hub.models.CausalLM | SentenceEncoder):
        dense = model.output_dense
        trained = span_head(folder) if isinstance(model, SpanClassifier) else None
        dense.set_weights(trained or head_weights(dense.kernel.shape[0], num_labels, seed))


def _set_masked_lm_head(model, folder, seed):
    """Set the weights of the head to those of a checkpoint, or else to new ones."""
    layer = model.masked_lm_head
    found = None if folder is None else read_head(safetensors_files(folder))
    if found is None:
        warn_new_head(folder)
        table = model.backbone.token_embedding
        found = new_head(table.output_dim, table.input_dim, seed)
    dense, norm = layer._intermediate_dense, layer._intermediate_layer_norm
    variables = (dense.kernel, dense.bias, norm.gamma, norm.beta, layer._bias)
    for variable, array in zip(variables, found, strict=True):
        variable.assign(array)


def _exact_gelu(model):
    """Use the exact GELU, with which the checkpoint was trained.

    KerasHub builds BERT with the tanh approximation although the configuration names "gelu", the
    exact one. In MiniLM this changes hidden states by 4e-3.
    """
    for layer in model._flatten_layers():
        if getattr(layer, "activation", None) is gelu_approximate:
            layer.activation = keras.activations.gelu


# --- trained classifiers -------------------------------------------------------------------------

#: Classes of this package by where their head is.
_OWN = {
    "token": TokenClassifier,
    "span": SpanClassifier,
    "masked_token": MaskedLanguageModel,
    "embedding": SentenceEncoder,
}
_CLASSIFIERS = (keras_hub.models.TextClassifier, keras_hub.models.CausalLM, *_OWN.values())


def describe_classifier(model: Any) -> tuple[dict, int, bool]:
    """Return the configuration of a classifier, its number of classes, and its `exact_gelu`.

    Raises:
        InputError: the model is no classifier of texts or tokens of KerasHub.
    """
    # `fit` and transforms may have put a subclass in its place.
    own = [
        c
        for c in type(model).__mro__
        if c in _OWN.values()
        or (issubclass(c, _CLASSIFIERS) and c.__module__.partition(".")[0] == "keras_hub")
    ]
    if not own:
        raise InputError(
            "A trained model is a text classifier of KerasHub or Hugging Face. Received: "
            f"{type(model).__name__} {model.name!r}. Save others with model.save('model.keras')."
        )
    config = {
        "class_name": own[0].__name__,
        "registered_name": keras.saving.get_registered_name(own[0]),
        "config": {**model.get_config(), "preprocessor": None},
    }
    backbone: Any = model.backbone
    used = [getattr(layer, "activation", None) for layer in backbone._flatten_layers()]
    exact = any(function is keras.activations.gelu for function in used)
    return config, model.num_classes, exact


def restore_classifier(folder: Path, config: dict, info: Any) -> Model:
    """Build a saved classifier, and load its weights."""
    name = str(config.get("class_name"))
    cls = _OWN.get(info.head) or getattr(keras_hub.models, name, None)
    if not isinstance(cls, type) or not issubclass(cls, _CLASSIFIERS) or cls.__name__ != name:
        raise InputError(
            "A trained model must be of a class that KerasHub has. Received: "
            f"{config.get('class_name')!r:.60} in {str(folder)!r}. Install the version of KerasHub "
            "that saved it."
        )
    try:
        settings = config["config"]
        # The policy is that of this process, as for models that are loaded from elsewhere.
        settings["backbone"]["config"].pop("dtype", None)
        model: Any = cls.from_config(settings)
        if info.exact_gelu:
            _exact_gelu(model)
        # KerasHub compiles its tasks, and Keras warns that the file has no optimizer.
        optimizer, model.optimizer = model.optimizer, None
        model.load_weights(str(folder / WEIGHTS))
        model.optimizer = optimizer
    # A folder can make KerasHub fail anywhere.
    except Exception as error:
        raise _not_restored(folder, error) from error
    _keep_float32(model)
    return model


def new_model(config: dict, num_labels: int, seed: int, head: str) -> tuple[Model, dict[str, str]]:
    """Return a model of a Hugging Face configuration with random weights, and its inputs."""
    converter: Any = importlib.import_module(
        f"keras_hub.src.utils.transformers.convert_{config['model_type']}"
    )
    dropout = _dropout(config)
    backbone = converter.backbone_cls(**converter.convert_backbone_config(config), **dropout)
    model = _with_head(backbone, num_labels, head, config.get("sep_token_id"), dropout)
    if config.get("hidden_act") == "gelu":
        _exact_gelu(model)
    for variable, array in initial_weights(model.weights, lambda v: v.path, seed):
        variable.assign(array)
    _keep_float32(model)
    return model, _inputs(model)


def _inputs(model):
    """Return the names of a model's inputs by content."""
    names = set(model.input) if isinstance(model.input, dict) else {"token_ids"}
    known = _DECODER_INPUTS if "decoder_token_ids" in names else _INPUTS
    return {role: name for role, name in known.items() if name in names}


def with_new_head(
    model: Any, num_labels: int, seed: int, head: str, separator: int | None
) -> Model:
    """Return a model of the encoder of a restored one and a new head."""
    exact = any(
        getattr(layer, "activation", None) is keras.activations.gelu
        for layer in model.backbone._flatten_layers()
    )
    if (pooler := getattr(model.backbone, "pooled_dense", None)) is not None:
        pooler.trainable = True
    found = _with_head(model.backbone, num_labels, head, separator)
    if exact:
        _exact_gelu(found)
    _set_new_head(found, num_labels, seed)
    _keep_float32(found)
    return found


def vocabulary_size(model: Any) -> int | None:
    """Return the number of rows of the table of tokens, if the model tells."""
    return getattr(model.backbone, "vocabulary_size", None)


def _not_restored(folder, error):
    return InputError(
        f"The configuration and weights of a trained model must fit. Received: {str(folder)!r}, "
        f"for which KerasHub reports: {shortened(str(error)).rstrip('.')}. Install the version of "
        "KerasHub that saved it, or copy the folder again."
    )


class _Encoder:
    """A KerasHub preprocessor as a backend of `Tokenizer`, which returns a list of id arrays."""

    def __init__(self, preprocessor):
        self.preprocessor = preprocessor

    def __call__(self, texts, max_length):
        self.preprocessor.sequence_length = max_length
        features = self.preprocessor(list(texts))
        ids = np.asarray(features["token_ids"], "int32")
        lengths = np.asarray(features["padding_mask"]).astype(bool).sum(axis=1)
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]
