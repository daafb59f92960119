"""`ExportedTeacher`: a SavedModel, LiteRT or ONNX file as a teacher, in a process of its own."""

import hashlib
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.distillation._teacher import NAMES, Teacher
from keras_efficient.runtime._model_process import (
    KINDS,
    ModelProcess,
    ModelProcessError,
    model_in,
)


class ExportedTeacher(Teacher):
    """An exported model as a teacher, which runs in a separate, confined process on the CPU.

    Args:
        path: a SavedModel's folder, or that of its versions, of which the newest is taken; or a
            .tflite or .onnx file.
        threads: int, threads of the process. Default: 1.

    Raises:
        InputError: there is no such file, or it does not load or run.

    Examples:
        >>> import numpy as np
        >>> x = np.ones((2, 3), "float32")
        >>> report = ke.export(model, "saved_models/teacher", sample=x)
        >>> teacher = ke.distillation.ExportedTeacher("saved_models/teacher")
        >>> teacher(x)["outputs"].shape
        TensorShape([2, 2])

    Reference:
        TensorFlow, "Using TensorFlow Securely": models are programs.
        https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md
    """

    compiles = False

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        self.path, kind = _located(path)
        self.name = f"the exported model {str(path)!r}"
        self._lock = threading.Lock()
        try:
            self._process: Any = ModelProcess(self.path, kind, threads)
            weakref.finalize(self, self._process.close)
            outputs = self._run(self._probe()).items()
        except ModelProcessError as error:
            raise InputError(
                f"An exported teacher must load and run. Received: {path}, which did not: {error}. "
                "Export it again."
            ) from error
        # A classifier may return names of labels, too.
        self._shapes = {name: a.shape for name, a in outputs if a.dtype.kind == "f"}

    def _probe(self):
        """Inputs of one example, to learn the shapes of the outputs."""
        return {
            name: np.ones([1] + [2 if n is None else n for n in spec["shape"][1:]], spec["dtype"])
            for name, spec in self._process.inputs.items()
        }

    def _run(self, named):
        # Replicas are threads.
        with self._lock:
            folder = self._process.folder
            inputs, outputs = folder / "inputs.npz", folder / "outputs.npz"
            np.savez(inputs, **named)
            self._process.ask(run=str(inputs), to=str(outputs))
            with np.load(outputs) as written:
                return dict(written)

    def __call__(self, x):
        named = self._inputs(x)
        names = list(self._shapes)

        def run(*arrays):
            found = self._run(dict(zip(named, arrays, strict=True)))
            return [found[name].astype(np.float32) for name in names]

        found = tf.numpy_function(run, list(named.values()), [tf.float32] * len(names))
        # A single output comes by itself.
        found = [found] if isinstance(found, tf.Tensor) else found
        for shape, output in zip(self._shapes.values(), found, strict=True):
            output.set_shape([None, *[None] * (len(shape) - 2), shape[-1]])
        return dict(zip(names, found, strict=True))

    def _inputs(self, x):
        """Return the features by the names of the model's inputs."""
        wanted = list(self._process.inputs)
        given = x if isinstance(x, dict) else dict(zip(wanted, tf.nest.flatten(x), strict=False))
        found = {}
        for name in wanted:
            others = next((names for names in NAMES if name in names), (name,))
            known = next((other for other in (name, *others) if other in given), None)
            if known is None:
                raise InputError(
                    f"The teacher's inputs must be among the features. Received: {sorted(given)} "
                    f"for {self.name}, which takes {wanted}. Give as teacher a function of the "
                    "features."
                )
            found[name] = given[known]
        return found

    def fingerprint(self):
        digest = hashlib.sha256()
        files = sorted(p for p in self.path.rglob("*") if p.is_file()) or [self.path]
        for file in files:
            digest.update(str(file.relative_to(self.path.parent)).encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()


def _located(path) -> tuple[Path, str]:
    found = Path(path).expanduser().absolute()
    if found.suffix in KINDS and found.is_file():
        return found, KINDS[found.suffix]
    versions = [p for p in found.iterdir() if p.name.isdigit()] if found.is_dir() else []
    for folder in (found, *sorted(versions, key=lambda p: -int(p.name))):
        if (model := model_in(folder)) is not None:
            return model
    raise InputError(
        "A teacher's path must be that of a SavedModel, a .tflite or .onnx file, or a cache. "
        f"Received: {str(path)!r}, which is none of them. Correct the path."
    )
