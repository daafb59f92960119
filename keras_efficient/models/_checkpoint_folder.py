"""Locate and check a folder of pretrained weights before a model is built from it."""

import difflib
import json
import os
from pathlib import Path

from keras_efficient._errors import InputError

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
        return path
    if not any((path / name).exists() for name in WEIGHTS):
        raise InputError(
            f"A model folder must hold weights: one of {', '.join(WEIGHTS)}. Received: {text!r} "
            f"with {sorted(p.name for p in path.iterdir())}. Download the complete folder "
            "(with Git LFS, `git lfs pull`)."
        )
    check_safetensors(path)
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


def read_json(path: Path, what: str) -> dict:
    """Read a JSON object. `what` describes the file in error messages."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"A model folder must hold {path.name}, {what}. Received: {str(path.parent)!r} "
            "without it. Download the complete folder."
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path.name} must be readable JSON. Received: {str(path)!r}, which is not ({error}). "
            "Download it again."
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path.name} must hold a JSON object. Received: {type(value).__name__}. Download it "
            "again."
        )
    return value


def safetensors_files(path: Path) -> list[Path]:
    """Return the safetensors files of a folder; none if its weights have another format."""
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return []
    names = sorted(set(read_json(index, "the list of weight files").get("weight_map", {}).values()))
    return [path / name for name in names]


def check_safetensors(path: Path) -> None:
    """Open every safetensors file of a folder, which detects truncated files by their header."""
    from safetensors import SafetensorError, safe_open

    for shard in safetensors_files(path):
        try:
            with safe_open(shard, framework="numpy") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"A weights file must be complete. Received: {str(shard)!r}, which is missing or "
                f"corrupt ({error}). Download it again."
            ) from None
        if not names:
            raise InputError(
                f"A weights file must hold tensors. Received: {str(shard)!r} with none. "
                "Download it again."
            )
