"""Load a pretrained Transformer with a task head, and its tokenizer."""

from pathlib import Path
from typing import Any, NamedTuple

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.models import _checkpoint_folder as folders

TASKS = ("classification",)


class LoadedModel(NamedTuple):
    """What `load` returns: `model, tokenizer = ke.models.load(...)`."""

    model: Any
    tokenizer: Tokenizer


def load(
    path_or_preset, *, task="classification", num_labels=2, library="keras", seed=0
) -> LoadedModel:
    """Load a pretrained Transformer, put a fresh head on it, and get its tokenizer.

    Takes a Hugging Face folder (config.json, model.safetensors of PyTorch or of TF, a tokenizer
    file) with either library: Keras 3 goes through KerasHub's converter, tf_keras through
    transformers' own. Both give the same outputs (to 1e-4 in float32), head included. With Keras
    3 also the folder or name of a KerasHub preset; with tf_keras the name of a Hugging Face model.

    Args:
        path_or_preset: path of a folder, or a name that KerasHub or Hugging Face knows.
        task: "classification".
        num_labels: int >= 2, the width of the head.
        library: "keras" (a KerasHub model) or "tf_keras" (a transformers TF model).
        seed: int, of the head's first weights, normal with standard deviation 0.02.

    Returns:
        `(model, tokenizer)`. The model takes the dict of int32 features that `ke.data.text` makes
        with this tokenizer, and gives logits `[batch, num_labels]` (a transformers model gives an
        output object that holds them).

    Raises:
        InputError: unknown task or library, no such folder, a folder without configuration,
            weights or tokenizer, a corrupt file, an architecture without a classifier.
    """
    if task not in TASKS:
        raise InputError(f"`task` must be one of {TASKS}. Received: {task!r}. Others are to come.")
    if type(num_labels) is not int or num_labels < 2:
        raise InputError(
            f"`num_labels` must be an int of at least 2. Received: {num_labels!r}. "
            "A classifier of one class has nothing to learn."
        )
    if library not in flavors.LIBRARIES:
        raise InputError(
            f"`library` must be one of {flavors.LIBRARIES}. Received: {library!r}. "
            "'keras' loads a KerasHub model, 'tf_keras' a Hugging Face TF model."
        )
    source = folders.find(path_or_preset, library)
    if library == "keras":
        from keras_efficient.models import _kerashub as loader
    else:
        from keras_efficient.models import _hugging_face as loader
    return LoadedModel(*loader.classifier(source, num_labels, seed))


def head_weights(width, num_labels, seed):
    """The first weights of a head: kernel `[width, num_labels]` and bias."""
    import numpy as np

    kernel = np.random.default_rng(seed).normal(0.0, 0.02, (width, num_labels))
    return [kernel.astype("float32"), np.zeros(num_labels, "float32")]


def name_of(source):
    """How messages call a source."""
    return str(source) if isinstance(source, Path) else f"{source!r}"
