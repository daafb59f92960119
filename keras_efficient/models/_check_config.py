"""`check_config`: refuse a model configuration of impossible or absurd sizes before it is built."""

from collections.abc import Iterator
from typing import Any

from keras_efficient._errors import InputError

# The keys of Hugging Face and KerasHub, and the range of each.
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "hidden_dim")
_INNER = ("intermediate_size", "intermediate_dim", "d_ff", "d_inner", "ffn_dim", "encoder_ffn_dim")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads")
_TOKENS = ("vocab_size", "vocabulary_size")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_RANGES = {
    **dict.fromkeys((*_WIDTHS, *_INNER, "embedding_size", "embedding_dim"), (1, 100_000)),
    **dict.fromkeys((*_LAYERS, "decoder_layers", "num_decoder_layers"), (0, 1_000)),
    **dict.fromkeys((*_HEADS, "decoder_attention_heads", "num_key_value_heads"), (1, 1_000)),
    **dict.fromkeys((*_TOKENS, *_POSITIONS), (1, 10_000_000)),
    "num_hidden_groups": (1, 1_000),
    "type_vocab_size": (0, 1_000),
    "num_segments": (0, 1_000),
}
#: Packages whose classes a KerasHub preset may name.
_MODULES = ("keras", "keras_hub", "builtins")
#: A model may have this many parameters, and this many per byte of its weight files. A float16
#: takes two bytes, and this count of parameters is an estimate.
_PARAMETERS, _PARAMETERS_PER_BYTE = 10_000_000, 2


def check_config(config: dict[str, Any], weight_bytes: int, where: str) -> None:
    """Require sizes of a model that are possible and fit its weight files.

    Args:
        config: The content of config.json, of Hugging Face or KerasHub.
        weight_bytes: Size of the weight files in bytes.
        where: The folder, for error messages.

    Raises:
        InputError: A size is no int or out of its range, the weights would not fill the model, or
            a preset names a class outside Keras and KerasHub.
    """
    for part in _objects(config):
        for key in _RANGES.keys() & part.keys():
            least, most = _RANGES[key]
            value = part[key]
            if value is not None and not (type(value) is int and least <= value <= most):
                raise InputError(
                    f"`{key}` of config.json must be an int from {least:,} to {most:,}. Received: "
                    f"{value!r:.60} in {where}. Correct it, or download the folder again."
                )
        module = part.get("module")
        if isinstance(module, str) and module.partition(".")[0] not in _MODULES:
            raise InputError(
                "A preset may only name classes of Keras and KerasHub. Received: "
                f"{module!r:.60} in {where}. Do not use this folder."
            )
        parameters, most = _parameters(part), _PARAMETERS + _PARAMETERS_PER_BYTE * weight_bytes
        if parameters > most:
            raise InputError(
                "The weights of a folder must fill its model. Received: config.json of about "
                f"{parameters:,} parameters, and {weight_bytes:,} bytes of weights, in {where}. "
                "Download the complete folder."
            )


def _objects(value: Any) -> Iterator[dict]:
    """Yield an object and those within it."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _parameters(part):
    """Estimate the number of parameters of a Transformer."""
    width = _first(part, _WIDTHS)
    inner = _first(part, (*_INNER, "hidden_dim"), 4 * width)
    # ALBERT's layers share the weights of their group.
    layers = _first(part, ("num_hidden_groups", *_LAYERS))
    tables = _first(part, _TOKENS) + _first(part, _POSITIONS)
    embedding = _first(part, ("embedding_size", "embedding_dim"), width)
    return tables * embedding + layers * width * (4 * width + 2 * inner)


def _first(part, keys, default=0):
    return next((part[key] for key in keys if part.get(key)), default)
