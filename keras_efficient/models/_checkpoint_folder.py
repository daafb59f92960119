"""Find and check a folder of pretrained weights before anything is built from it."""

import json
from pathlib import Path

from keras_efficient._errors import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "tf_model.h5")


def find(path_or_preset, library):
    """A checked `Path` if it names something on disk, else the name of a preset as it is.

    Raises:
        InputError: it looks like a path and there is nothing; or what is there is incomplete.
    """
    text = str(path_or_preset)
    path = Path(text).expanduser()
    if not path.exists():
        if isinstance(path_or_preset, Path) or text.startswith((".", "/", "~")) or "\\" in text:
            raise InputError(
                f"The model folder must exist. Received: {text!r}. Give the path of a folder with "
                "config.json, model.safetensors and tokenizer.json, or the name of a preset."
            )
        return text
    if not path.is_dir():
        raise InputError(
            f"A model is a folder. Received the file {text!r}. Give the folder it lies in."
        )
    config = read_json(path / "config.json", "the model's configuration")
    if is_kerashub(config):
        if library != "keras":
            raise InputError(
                f"A KerasHub preset loads with library='keras'. Received: {text!r} with "
                f"library={library!r}. Use library='keras', or a Hugging Face folder."
            )
        return path
    if not any((path / name).exists() for name in WEIGHTS):
        raise InputError(
            f"A model folder must hold weights: one of {', '.join(WEIGHTS)}. Received: {text!r} "
            f"with {sorted(p.name for p in path.iterdir())}. Download the folder whole "
            "(with Git LFS, `git lfs pull`)."
        )
    check_safetensors(path)
    return path


def is_kerashub(config):
    return "registered_name" in config or "class_name" in config


def read_json(path, what):
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"A model folder must hold {path.name}, {what}. Received: {str(path.parent)!r} "
            "without it. Download the folder whole."
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path.name} must be readable JSON. Received: {str(path)!r}, which is not ({error}). "
            "Download it again."
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path.name} must hold a JSON object. Received: {type(value).__name__}.")
    return value


def shards(path):
    """The safetensors files of a folder; none if it has other weights."""
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return []
    names = sorted(set(read_json(index, "the list of weight files").get("weight_map", {}).values()))
    return [path / name for name in names]


def check_safetensors(path):
    """Open every safetensors file: its header states its size, so a torn file shows at once."""
    from safetensors import SafetensorError, safe_open

    for shard in shards(path):
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
