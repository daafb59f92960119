"""`save`: write a trained model with its head, tokenizer and label names into a folder."""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient import flavor as flavors, tasks
from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer, as_tokenizer
from keras_efficient.flavor._typing import Model
from keras_efficient.models._loader import loader_of
from keras_efficient.models._trained_folder import (
    CONFIG,
    FILES,
    FORMAT,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    TrainedModelInfo,
    file_facts,
    read_info,
)


def save(
    model: Model,
    tokenizer: Any,
    directory: str | os.PathLike,
    *,
    label_names: Sequence[str] | None = None,
    task: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> TrainedModelInfo:
    """Write a trained model into a folder, from which `ke.models.load` restores it.

    The folder holds the configuration, the weights, the tokenizer, and a manifest with the task,
    the names of the classes and the SHA-256 of each file. It is complete or it does not exist.
    Models that `ke.shrink` made smaller are saved like those that `ke.models.load` returned.
    Transforms of weights are folded, as in all files of a model.

    Args:
        model: a classifier of texts or tokens, of KerasHub or Hugging Face.
        tokenizer: its `ke.data.Tokenizer`, with a `tokenizers.Tokenizer` as backend.
        directory: path of the folder, which must not exist or be empty.
        label_names: name of each class, in the order of the logits. Default: None, their numbers.
        task: name of the task it was trained for, or a `ke.tasks.Task`. Default: None,
            "classification".
        facts: dict of JSON values to keep with the model, such as the seed of its training.
            Default: None.

    Returns:
        The `TrainedModelInfo` of the folder.

    Raises:
        InputError: the folder is not empty or cannot be written, the tokenizer is a function, the
            model is of another kind, or the number of names is not that of the classes.

    Examples:
        >>> import tempfile
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2", num_labels=2)
        >>> folder = tempfile.mkdtemp() + "/trained"
        >>> ke.models.save(model, tokenizer, folder, label_names=["bad", "good"]).label_names
        ('bad', 'good')
        >>> model, tokenizer = ke.models.load(folder)

    Reference:
        `transformers.TFPreTrainedModel.save_pretrained` and `keras_hub.models.Task.save_to_preset`.
    """
    library = flavors.of(model).name
    task = tasks.get(task)
    tokenizer = as_tokenizer(tokenizer)
    target = Path(directory).expanduser().absolute()
    check_savable(tokenizer)
    _check_free(target)
    loader = loader_of(library)
    config, classes, exact_gelu = loader.describe_classifier(model)
    names = task.label_names(label_names, classes)
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (partial / TOKENIZER).write_text(tokenizer.serialized or "", encoding="utf-8")
        with _without_optimizer(model):
            model.save_weights(str(partial / WEIGHTS))
        manifest = {
            "format": FORMAT,
            "library": library,
            "task": task.name,
            "texts": task.texts,
            "head": task.head,
            "label_names": names,
            "tokenizer": {
                "inputs": tokenizer.inputs,
                "pad_id": tokenizer.pad_id,
                "max_length": tokenizer.max_length,
                "decoder_start_id": tokenizer.decoder_start_id,
            },
            "exact_gelu": exact_gelu,
            "facts": _plain(facts),
            "files": {name: file_facts(partial / name) for name in FILES},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        with suppress(OSError):
            target.rmdir()
        os.rename(partial, target)
    except OSError as error:
        raise InputError(
            "A trained model needs a folder that can be written, on a disk with space for it. "
            f"Received: {str(target)!r} ({error.strerror or error}). Choose another path, or free "
            "some space."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_info(target)


def check_savable(tokenizer: Tokenizer) -> None:
    """Require a tokenizer that can be written into a file.

    Raises:
        InputError: it is a function or an object of another library.
    """
    if tokenizer.serialized is None:
        raise InputError(
            "A trained model is saved with its tokenizer, which must be a tokenizers.Tokenizer. "
            f"Received: {tokenizer!r}. Load the model from a folder with tokenizer.json, or save "
            "it by `model.save` alone."
        )


def _check_free(target):
    if target.is_dir() and not any(target.iterdir()):
        return
    if os.path.lexists(target):
        raise InputError(
            f"A trained model has a folder of its own. Received: {str(target)!r}, which exists. "
            "Choose another path, or delete it."
        )


@contextmanager
def _without_optimizer(model):
    """Leave out the optimizer, whose moments both libraries would write with the weights."""
    optimizer = getattr(model, "optimizer", None)
    try:
        if optimizer is not None:
            model.optimizer = None
        yield
    finally:
        if optimizer is not None:
            model.optimizer = optimizer


def _plain(facts):
    """Return the facts as they will be read from JSON."""

    def converted(value):
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"a {type(value).__name__}")

    try:
        return json.loads(json.dumps(dict(facts or {}), default=converted, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`facts` must be a dict of JSON values. Received: {facts!r:.200} ({error}). Convert "
            "those values first."
        ) from error
