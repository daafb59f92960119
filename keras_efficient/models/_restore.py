"""`restore`: load a trained classifier, with its head, from the folder that `save` wrote."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from keras_efficient._errors import InputError
from keras_efficient.data._read_json import read_json
from keras_efficient.data._tokenizer import MASK_POSITIONS, Tokenizer, as_tokenizer
from keras_efficient.data._tokenizer_limits import check_tokenizer
from keras_efficient.flavor._typing import Model
from keras_efficient.models._check_config import check_config
from keras_efficient.models._check_weights import check_weight_files
from keras_efficient.models._checkpoint_folder import check_ids
from keras_efficient.models._loader import loader_of
from keras_efficient.models._trained_folder import CONFIG, TOKENIZER, read_info
from keras_efficient.tasks import Task, get as get_task


def restore(
    folder: Path, task: Task | None, num_labels: int | None, library: str | None, seed: int = 0
) -> tuple[Model, Tokenizer]:
    """Load the model and the tokenizer of a folder, both as they were saved.

    If the folder's task only prepares a model for other tasks, and another one is wanted, its
    encoder gets a new head.

    Args:
        folder: the folder that `save` wrote.
        task: task that the caller expects, or None.
        num_labels: number of classes that the caller expects, or None.
        library: library that the caller expects, or None.
        seed: seed of a new head. Default: 0.

    Raises:
        InputError: a file is damaged, or the library, the task or the number of classes is another
            one.
    """
    info = read_info(folder)
    if library is not None and library != info.library:
        raise InputError(
            f"A trained model loads with the library that saved it. Received: library={library!r} "
            f"for {str(folder)!r}, of {info.library!r}. Leave `library` out."
        )
    other = task is not None and task.name != info.task
    if task is not None and other and not get_task(info.task).pretrains:
        raise InputError(
            f"A trained model keeps its task. Received: task={task.name!r} for {str(folder)!r}, "
            f"which was trained for {info.task!r}. Leave `task` out, or load the pretrained model."
        )
    if not other and num_labels is not None and num_labels != max(1, len(info.label_names)):
        raise InputError(
            f"A trained model keeps its head. Received: num_labels={num_labels} for "
            f"{str(folder)!r}, whose head has {len(info.label_names)} classes. Leave `num_labels` "
            "out, or load the model that was trained."
        )
    config = read_json(folder / CONFIG, "the model's configuration")
    check_config(config, check_weight_files(folder), str(folder))
    # Before the model, which takes longer and more memory.
    tokenizer = _tokenizer(folder, info)
    loader = loader_of(info.library)
    model: Any = loader.restore_classifier(folder, config, info)
    check_ids(tokenizer.largest_id, loader.vocabulary_size(model), str(folder))
    if task is None or not other:
        return model, tokenizer
    separator = tokenizer.separator if task.head == "span" else None
    model = loader.with_new_head(model, task.head_size(num_labels), seed, task.head, separator)
    # Inputs that only the old head had.
    inputs = {r: n for r, n in tokenizer.inputs.items() if r not in MASK_POSITIONS}
    return model, as_tokenizer(tokenizer, inputs=inputs)


def _tokenizer(folder, info):
    file = folder / TOKENIZER
    text = json.dumps(read_json(file, "the tokenizer"))
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        tokenizer = Tokenizer(backend, **info.tokenizer)
    except Exception as error:  # `tokenizers` raises Exception itself.
        raise InputError(
            f"The tokenizer's file must be readable. Received: {file} ({error}). Copy the folder "
            "again from where it was made."
        ) from error
    check_tokenizer(json.loads(tokenizer.serialized or "{}"), str(file))
    return tokenizer
