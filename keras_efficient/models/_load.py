"""Load a pretrained Transformer with the head of a task, and its tokenizer."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_efficient import flavor as flavors, tasks
from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._typing import Model
from keras_efficient.models._checkpoint_folder import find_checkpoint
from keras_efficient.models._loader import loader_of
from keras_efficient.models._restore import restore
from keras_efficient.models._trained_folder import trained_folder


class LoadedModel(NamedTuple):
    """Result of `load`, usually unpacked: `model, tokenizer = ke.models.load(...)`.

    Attributes:
        model: The Keras 3 or tf_keras model, not compiled.
        tokenizer: `ke.data.Tokenizer`, with the names of the model's inputs.
    """

    model: Model
    tokenizer: Tokenizer


def load(
    path_or_preset: str | os.PathLike,
    *,
    task: Any = None,
    num_labels: int | None = None,
    library: str | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Load a pretrained Transformer with a new head, or a trained one, and its tokenizer.

    A Hugging Face folder (config.json, model.safetensors of PyTorch or TensorFlow, and a tokenizer
    file) loads with either library: Keras 3 uses KerasHub's converter, tf_keras that of
    transformers. Both models give the same outputs, head included, to 1e-4 in float32. Keras 3 also
    loads KerasHub presets by folder or name; tf_keras also loads Hugging Face models by name.

    A folder of `ke.models.save`, or the output of `keras-efficient finetune`, holds a trained
    model, which is returned as it was saved, with its head and its tokenizer. A model that was
    adapted by "masked_lm" is also a start for the other tasks: its encoder gets a new head.

    Args:
        path_or_preset: Path of a folder, or a name known to KerasHub or Hugging Face.
        task: Name of a task (`ke.tasks.names()`) or a `ke.tasks.Task`. Default: None, that of a
            trained model, otherwise "classification".
        num_labels: Number of classes, for tasks that have some. Default: None, those of a trained
            model, otherwise the task's default: 2 for "classification".
        library: "keras" for a KerasHub model or "tf_keras" for a transformers TF model. Default:
            None, that of a trained model, otherwise "keras".
        seed: Seed of the initial kernel of the head, which is normal with standard deviation 0.02.
            Default: 0.

    Returns:
        `(model, tokenizer)`. The model takes the dict of int32 features that `ke.data.text` makes
        with this tokenizer and returns logits `[batch, outputs]`, one output per class or, in
        "regression", one; in "token_classification" `[batch, length, outputs]`; in
        "question_answering" `[batch, 2, length]`; in "masked_lm" `[batch, masked, vocabulary]`, for
        the input "mask_positions"; in "causal_lm" and "seq2seq" `[batch, length, vocabulary]`. A
        transformers model returns an output object with the attribute `logits`. The head of
        "question_answering" is that of the checkpoint if it has one (`qa_outputs`).

    Raises:
        InputError: The task or library is unknown, the folder does not exist or lacks its
            configuration, weights or tokenizer, a file is corrupt, or the architecture has no
            classifier.

    Examples:
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2", num_labels=3)
        >>> data = ke.data.text(["a good film", "a bad plot"], tokenizer, batch_size=2)
        >>> model.predict(data, verbose=0).shape
        (2, 3)

    Reference:
        `keras_hub.models.TextClassifier.from_preset` and
        `transformers.TFAutoModelForSequenceClassification.from_pretrained`.
    """
    wanted = None if task is None else tasks.get(task)
    if library not in (None, *flavors.LIBRARIES):
        raise InputError(
            f"`library` must be one of {flavors.LIBRARIES}. Received: {library!r}. "
            "'keras' loads a KerasHub model, 'tf_keras' a Hugging Face TF model."
        )
    trained = trained_folder(Path(path_or_preset).expanduser())
    if trained is not None:
        return LoadedModel(*restore(trained, wanted, num_labels, library, seed))
    library, task = library or "keras", tasks.get(wanted)
    head_size = task.head_size(num_labels)
    source = find_checkpoint(path_or_preset, library)
    loader = loader_of(library)
    loaded = LoadedModel(*loader.load_classifier(source, head_size, seed, task.head))
    _check_finite(loaded.model, source)
    return loaded


def _check_finite(model, source):
    flavor = flavors.of(model)
    for variable in model.weights:
        values = flavor.value(variable).numpy()
        if values.dtype.kind in "fV" and not np.isfinite(values).all():
            raise InputError(
                "Weights must be finite numbers. Received: "
                f"{flavor.path(variable)!r} of {source}, with values that are "
                "NaN or infinite. Download the model again, or use another."
            )
