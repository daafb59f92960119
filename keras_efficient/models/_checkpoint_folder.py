"""Locate and check a folder of pretrained weights before a model is built from it."""

import difflib
import os
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.data._read_json import read_json
from keras_efficient.data._tokenizer import HUGGING_FACE, Tokenizer
from keras_efficient.models._check_config import check_config
from keras_efficient.models._check_weights import check_weight_files

#: Files of a KerasHub preset that name classes and sizes.
_PRESET_FILES = ("config.json", "task.json", "preprocessor.json", "tokenizer.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "tf_model.h5")


def find_checkpoint(path_or_preset: str | os.PathLike, library: str) -> Path | str:
    """Return a checked `Path` if the argument names a folder, otherwise the preset's name.

    Args:
        path_or_preset: Path of a folder, or the name of a preset.
        library: "keras" or "tf_keras".

    Raises:
        InputError: A path does not exist, or the folder is incomplete.
    """
    text = str(path_or_preset)
    path = Path(text).expanduser()
    if not path.exists():
        if isinstance(path_or_preset, Path) or _is_path(text, library):
            raise InputError(
                f"The model folder must exist. Received: {text!r}, which does not (working "
                f"directory: {Path.cwd()}). {_neighbours(path)}Give the path of a folder with "
                "config.json, model.safetensors and tokenizer.json, or the name of a preset."
            )
        return text
    if not path.is_dir():
        raise InputError(
            f"A model is a folder. Received the file {text!r}. Give the folder that contains it."
        )
    config = read_json(path / "config.json", "the model's configuration")
    if is_kerashub_preset(config):
        if library != "keras":
            raise InputError(
                f"A KerasHub preset loads with library='keras'. Received: {text!r} with "
                f"library={library!r}. Use library='keras', or a Hugging Face folder."
            )
        weight_bytes = check_weight_files(path)
        for name in _PRESET_FILES:
            if (path / name).exists():
                check_config(read_json(path / name, "a part of the preset"), weight_bytes, text)
        return path
    if not any((path / name).exists() for name in WEIGHTS):
        raise InputError(
            f"A model folder must hold weights: one of {', '.join(WEIGHTS)}. Received: {text!r} "
            f"with {sorted(p.name for p in path.iterdir())}. Download the complete folder "
            "(with Git LFS, `git lfs pull`)."
        )
    check_config(config, check_weight_files(path), text)
    return path


def describe(source: Path | str) -> str:
    """Return how error messages name a checkpoint."""
    if isinstance(source, Path):
        return str(source)
    return f"{source!r}, which is no folder in {Path.cwd()}"


def _is_path(text: str, library: str) -> bool:
    """Whether a name that does not exist can only have been meant as a path."""
    if "://" in text:
        return False
    if text.startswith((".", "/", "~")) or "\\" in text or text.endswith("/"):
        return True
    # Hugging Face names are OWNER/NAME, those of KerasHub have no slash.
    most = 1 if library == "tf_keras" else 0
    return text.count("/") > most or ("/" in text and Path(text).parent.is_dir())


def _neighbours(path: Path) -> str:
    """Return a hint: a folder beside the missing one that has a similar name."""
    if not path.parent.is_dir():
        return f"Nor does the folder {str(path.parent)!r}. "
    names = [p.name for p in path.parent.iterdir() if p.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {str(path.with_name(near[0]))!r}? " if near else ""


def is_kerashub_preset(config: dict) -> bool:
    """Whether a config.json belongs to a KerasHub preset."""
    return "registered_name" in config or "class_name" in config


def load_tokenizer(path: Path, config: dict) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder, whose ids must be rows of the model's table."""
    limit = config.get("max_position_embeddings") or config.get("n_positions") or 512
    tokenizer = Tokenizer.from_directory(
        path,
        inputs=HUGGING_FACE,
        max_length=limit,
        decoder_start_id=config.get("decoder_start_token_id"),
    )
    check_ids(tokenizer.largest_id, config.get("vocab_size"), str(path))
    return tokenizer


def check_ids(largest: int | None, rows: int | None, where: str) -> None:
    """Require that each token id has a row in the embedding table of the model."""
    if rows is not None and largest is not None and largest >= rows:
        raise InputError(
            f"Each token of a model must have a row in its embedding table. Received: {where} with "
            f"a token of id {largest:,} and a table of {rows:,} rows. Use the tokenizer that the "
            "model was trained with."
        )
