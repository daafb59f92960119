"""`TeacherCache`: outputs of a teacher on disk, found by the features of each example."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.checkpoint._array_file import read_arrays
from keras_efficient.distillation._example_keys import (
    example_keys,
    named_features,
    real_positions,
)
from keras_efficient.distillation._teacher import Teacher
from keras_efficient.flavor._ignored_label import MASKED

FORMAT = 1
MANIFEST = "teacher_cache.json"


class TeacherCache(Teacher):
    """The cached outputs of a teacher, mapped into memory; a teacher for `ke.distill`.

    An example gets the outputs that were computed for its features, in whatever batch it is and
    however far that is padded. `ke.distillation.cache` writes the files, each with its SHA-256.
    XLA cannot compile the look-up, so the student needs `jit_compile=False`.

    Args:
        directory: path of the folder that `ke.distillation.cache` wrote.

    Attributes:
        directory: `Path` of the folder.
        manifest: dict, the content of its teacher_cache.json.

    Raises:
        InputError: the folder holds no cache, or a file is not as it was written; in `fit`, an
            example is not in the cache.

    Examples:
        >>> cache = ke.distillation.cache(model, dataset, "teacher_outputs")
        >>> len(cache) == len(ke.distillation.TeacherCache("teacher_outputs"))
        True

    Reference:
        Shen & Xing 2021, "A Fast Knowledge Distillation Framework for Visual Recognition".
    """

    compiles = False

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        self.name = f"the cache {str(directory)!r}"
        self.manifest = read_manifest(self.directory)
        self._index: dict[bytes, tuple[int, int]] = {}
        self._values, self._starts = [], []
        for number, part in enumerate(self.manifest["parts"]):
            path = self.directory / part["file"]
            _check_part(path, part)
            arrays = read_arrays(path)
            self._values.append(arrays["values"])
            self._starts.append(np.concatenate([[0], np.cumsum(arrays["rows"])]))
            for row, key in enumerate(arrays["keys"]):
                self._index[key.tobytes()] = number, row

    def __len__(self):
        return len(self._index)

    def __contains__(self, key: bytes):
        return key in self._index

    @property
    def keys(self):
        """The keys of all examples."""
        return self._index.keys()

    def outputs(self, x: Any) -> np.ndarray:
        """Return the outputs for a batch of features, float32.

        Args:
            x: nest of arrays or tensors, features as `fit` receives them.

        Returns:
            Array `[examples, classes]`; `[examples, tokens, classes]` with zeros at padding; or
            `[examples, outputs, tokens]` with -100 at padding, if the outputs are logits over the
            tokens.

        Raises:
            InputError: an example is not in the cache.
        """
        features = named_features(x)
        keys, real = example_keys(features), real_positions(features)
        missing = [number for number, key in enumerate(keys) if key not in self._index]
        if missing:
            raise InputError(
                "A cache must hold the outputs for each example. Received: example "
                f"{missing[0]} of a batch, which {self.name} with {len(self):,} examples does not "
                "hold. Call ke.distillation.cache with this data; texts that change from epoch to "
                "epoch need the teacher itself."
            )
        rows = [self._rows(key) for key in keys]
        if not self.manifest["tokens"]:
            return np.concatenate(rows).astype(np.float32)
        assert real is not None
        fill = MASKED if self._over_tokens else 0.0
        found = np.full((*real.shape, *self.manifest["shape"]), fill, np.float32)
        found[real] = np.concatenate(rows)
        return np.swapaxes(found, 1, 2) if self._over_tokens else found

    @property
    def _over_tokens(self):
        """Whether the tokens are the last axis of the outputs."""
        return bool(self.manifest.get("over_tokens"))

    def _rows(self, key):
        number, row = self._index[key]
        start, stop = self._starts[number][row : row + 2]
        return self._values[number][start:stop]

    def __call__(self, x):
        structure, flat = x, tf.nest.flatten(x)

        def look_up(*arrays):
            return self.outputs(tf.nest.pack_sequence_as(structure, list(arrays)))

        outputs = tf.numpy_function(look_up, flat, tf.float32, stateful=False)
        shape = [*self.manifest["shape"]]
        if self.manifest["tokens"]:
            shape.insert(1 if self._over_tokens else 0, None)
        outputs.set_shape([None, *shape])
        return outputs

    def from_logits(self, outputs):
        return self.manifest["from_logits"]


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a cache.

    Raises:
        InputError: there is none that can be read.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "A cache of teacher outputs is a folder that ke.distillation.cache wrote. Received: "
            f"{str(directory)!r}, without a {MANIFEST} that can be read ({error}). Give the folder "
            "of a cache, or make one."
        ) from error
    return manifest


def _check_part(path, part):
    problem = None
    if path.name != part["file"] or not path.is_file():
        problem = "is missing"
    elif path.stat().st_size != part["bytes"] or _sha256(path) != part["sha256"]:
        problem = "is not as it was written"
    if problem:
        raise InputError(
            "The files of a cache must be as they were written. Received: "
            f"{path}, which {problem}. Delete the folder, and call ke.distillation.cache again."
        )


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
