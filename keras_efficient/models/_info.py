"""`info`: facts about a trained model, read without loading it."""

import os
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.models._trained_folder import TrainedModelInfo, read_info, trained_folder


def info(directory: str | os.PathLike) -> TrainedModelInfo:
    """Read the facts about a trained model that `ke.models.save` wrote, and check its files.

    Args:
        directory: path of the model's folder; or ".../NAME", the output of `keras-efficient
            finetune`, for its newest trained model.

    Returns:
        A `TrainedModelInfo`.

    Raises:
        InputError: there is no trained model, or a file is not as it was written. The message says
            what to give instead of an exported SavedModel or a pretrained model.

    Examples:
        >>> import tempfile
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2", num_labels=2)
        >>> folder = ke.models.save(model, tokenizer, tempfile.mkdtemp() + "/trained").directory
        >>> ke.models.info(folder).library
        'keras'

    Reference:
        `ke.models.save`.
    """
    path = Path(directory).expanduser().absolute()
    found = trained_folder(path)
    if found is not None:
        return read_info(found)
    received = f"Received: {str(directory)!r}, "
    rule = "A trained model is a folder that `keras-efficient finetune` or ke.models.save wrote. "
    if not path.exists():
        raise InputError(
            f"{rule}{received}which does not exist (working directory: {Path.cwd()}). Correct the "
            "path."
        )
    if _is_exported(path):
        beside = trained_folder(path.parent)
        if beside is None:
            remedy = (
                "Its graph cannot be trained or made smaller: run `keras-efficient finetune` "
                "again, which leaves the trained model beside its versions as trained-1, or save "
                "the model with ke.models.save."
            )
        else:
            remedy = f"Its graph cannot be trained or made smaller. Give {beside}."
        raise InputError(f"{rule}{received}which is an exported model. {remedy}")
    if path.is_file():
        raise InputError(f"{rule}{received}which is a file. Give the folder of the model.")
    if (path / "config.json").is_file():
        raise InputError(
            f"{rule}{received}which is a pretrained model without a trained head. Fine-tune it "
            "first, with `keras-efficient finetune` or `model.fit` and ke.models.save."
        )
    raise InputError(f"{rule}{received}which holds none. Give the --output of `finetune`.")


def _is_exported(path):
    """Whether a path is an exported model, or a folder of versions."""
    if path.is_file():
        return path.suffix in (".pb", ".tflite", ".onnx", ".xml")
    folders = [path, *(child for child in path.iterdir() if child.name.isdecimal())]
    names = ("saved_model.pb", "model.tflite", "model.onnx")
    return any((folder / name).exists() for folder in folders for name in names)
