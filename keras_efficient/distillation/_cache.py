"""`cache`: compute the outputs of a teacher once, and keep them on disk."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.checkpoint._array_file import write_arrays
from keras_efficient.checkpoint._run_lock import LOCK, RunLock
from keras_efficient.distillation._as_teacher import as_teacher
from keras_efficient.distillation._example_keys import (
    example_keys,
    named_features,
    real_positions,
)
from keras_efficient.distillation._teacher import chosen_outputs
from keras_efficient.distillation._teacher_cache import FORMAT, MANIFEST, TeacherCache

#: A file is written when it has so many bytes of outputs, or so many examples.
_PART_BYTES, _PART_EXAMPLES = 64 * 2**20, 4096
_DTYPES = ("float32", "float16")


def cache(
    teacher: Any,
    data: Iterable,
    directory: str | os.PathLike,
    *,
    dtype: str = "float32",
) -> TeacherCache:
    """Compute a teacher's outputs for some data once, and keep them on disk for `ke.distill`.

    Epochs of distillation then cost the student alone. The outputs belong to the examples: their
    order, their batches and the padding may differ from epoch to epoch. Outputs for tokens are kept
    for real tokens only; logits over tokens, `[examples, outputs, tokens]`, likewise.

    Outputs are written in parts, each complete and with its checksum or not at all. After a kill
    the same call goes on where the last one stopped; examples that the cache holds already are not
    computed again, and further data is added.

    Args:
        teacher: as for `ke.distill`, a single one.
        data: iterable of batches of features, or of tuples (features, labels[, sample_weight]);
            one epoch, such as that of `ke.data.text`.
        directory: path of a folder of the cache's own; it is created.
        dtype: "float32" or "float16", in which outputs are kept. Default: "float32".

    Returns:
        The `TeacherCache`, a teacher for `ke.distill`.

    Raises:
        InputError: there is no data; the folder holds something else, the outputs of another
            teacher, or files that are not as they were written; the teacher has several outputs;
            or the disk is too full.
        ValueError: `dtype` is not accepted, or the teacher is not built.
        TypeError: `teacher` is no teacher.

    Examples:
        >>> import numpy as np
        >>> batches = [np.eye(3, dtype="float32"), np.ones((2, 3), "float32")]
        >>> outputs = ke.distillation.cache(model, batches, "teacher_outputs")
        >>> len(outputs)  # the last two examples are equal
        4

    Reference:
        Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent", on
        why the outputs must be those for exactly the student's input.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {_DTYPES}. Received: {dtype!r}.")
    teacher, directory = as_teacher(teacher), Path(directory)
    if isinstance(teacher, TeacherCache):
        raise InputError(
            f"A cache is made from a teacher. Received: {teacher.name}. Give it to ke.distill."
        )
    _check_folder(directory)
    lock = RunLock(directory, "a cache of teacher outputs")
    lock.acquire()
    try:
        _Writer(teacher, directory, dtype).write(data)
    finally:
        lock.release()
    return TeacherCache(directory)


class _Writer:
    """Writer of a cache's files."""

    def __init__(self, teacher, directory, dtype):
        self.teacher, self.directory, self.dtype = teacher, directory, dtype
        fingerprint = teacher.fingerprint()
        present = (directory / MANIFEST).exists()
        self.known: Any = TeacherCache(directory) if present else {}
        self.manifest: dict[str, Any] = (
            self.known.manifest
            if present
            else {
                "format": FORMAT,
                "teacher": teacher.name,
                "fingerprint": fingerprint,
                "dtype": dtype,
                "parts": [],
            }
        )
        for name, value in (("fingerprint", fingerprint), ("dtype", dtype)):
            if self.manifest[name] != value:
                raise InputError(
                    "A cache holds the outputs of one teacher, with the weights that it had, in "
                    f"one dtype. Received: {teacher.name} and {dtype} for {str(directory)!r}, "
                    f"whose {name} is another ({self.manifest['teacher']}, "
                    f"{self.manifest['dtype']}). Give another folder, or delete this one."
                )
        self.seen: set[bytes] = set()
        self.keys: list[bytes] = []
        self.rows: list[np.ndarray] = []
        self.bytes = 0

    def write(self, data):
        run = self._runner()
        for number, batch in enumerate(data):
            x = batch[0] if isinstance(batch, tuple) else batch
            features = named_features(x)
            keys = example_keys(features)
            fresh = [
                i
                for i, key in enumerate(keys)
                if key not in self.known and key not in self.seen and key not in keys[:i]
            ]
            self.seen.update(keys)
            if fresh:
                self._add(keys, fresh, features, run(x))
            if number == 0:
                self._check_disk(data, len(keys))
            if self.bytes >= _PART_BYTES or len(self.keys) >= _PART_EXAMPLES:
                self._flush()
        if not self.seen:
            raise InputError("`data` must hold at least one batch. Received: none.")
        self._flush()
        keys = sorted(self.seen)
        self.manifest["data"] = hashlib.sha256(b"".join(keys)).hexdigest()
        self._write_manifest()

    def _runner(self):
        """Return a function of features that returns the teacher's only output."""

        def outputs(x):
            found = self.teacher(x)
            self.manifest["from_logits"] = self.teacher.from_logits(found)
            return chosen_outputs(found)

        traced = tf.function(outputs, autograph=False, reduce_retracing=True)

        def run(x):
            found = traced(tf.nest.map_structure(tf.convert_to_tensor, x))
            if len(found) != 1 or found[0].shape.rank not in (2, 3):
                shapes = [output.shape.as_list() for output in found]
                raise InputError(
                    "A cache holds one output, [examples, classes], [examples, tokens, classes] or "
                    f"[examples, outputs, tokens]. Received: outputs of shapes {shapes}. Give a "
                    "function of features that returns one of them."
                )
            return tf.cast(found[0], tf.float32).numpy()

        return run

    def _add(self, keys, fresh, features, outputs):
        tokens = outputs.ndim == 3
        real = real_positions(features) if tokens else None
        # Of tokens, or over tokens, as for the beginning of an answer.
        over = real is not None and outputs.shape[1] != real.shape[1] == outputs.shape[2]
        if over:
            outputs = np.swapaxes(outputs, 1, 2)
        self.manifest.update(tokens=tokens, shape=list(outputs.shape[-1:]), over_tokens=over)
        if tokens and (real is None or real.shape != outputs.shape[:2]):
            raise InputError(
                "Outputs for tokens belong to the token ids or the mask among the features. "
                f"Received: outputs of shape {outputs.shape} for features of shapes "
                f"{ {name: array.shape for name, array in features.items()} }."
            )
        for i in fresh:
            rows = outputs[i : i + 1] if real is None else outputs[i][real[i]]
            self.keys.append(keys[i])
            self.rows.append(rows.astype(self.dtype))
            self.bytes += self.rows[-1].nbytes

    def _check_disk(self, data, examples):
        """Refuse a disk on which the outputs have no space, as far as their number is known."""
        batches = getattr(data, "cardinality", lambda: -1)()
        needed = self.bytes * max(int(batches), 1)
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise InputError(
                f"The cache of {int(batches):,} batches of {examples} examples takes about "
                f"{needed / 1e6:,.0f} MB. Received: {str(self.directory)!r}, with "
                f"{free / 1e6:,.0f} MB free. Choose another disk, or dtype='float16'."
            )

    def _flush(self):
        """Write a part, and the manifest that names it."""
        if not self.keys:
            return
        arrays = {
            "keys": np.frombuffer(b"".join(self.keys), np.uint8).reshape(len(self.keys), -1),
            "rows": np.array([len(rows) for rows in self.rows], np.int64),
            "values": np.concatenate(self.rows),
        }
        file = f"part-{len(self.manifest['parts']):05}.safetensors"
        partial = self.directory / f".{file}.partial"
        specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        digest, size = write_arrays(partial, specs, arrays.__getitem__)
        os.replace(partial, self.directory / file)
        part = {"file": file, "sha256": digest, "bytes": size, "examples": len(self.keys)}
        self.manifest["parts"].append(part)
        self._write_manifest()
        self.keys, self.rows, self.bytes = [], [], 0

    def _write_manifest(self):
        partial = self.directory / f".{MANIFEST}.partial"
        partial.write_text(json.dumps(self.manifest, indent=1), encoding="utf-8")
        os.replace(partial, self.directory / MANIFEST)


def _check_folder(directory):
    if directory.exists() and not directory.is_dir():
        raise InputError(
            f"A cache is a folder. Received: {str(directory)!r}, which is a file. Choose another "
            "path."
        )
    present = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    ours = [
        name
        for name in present
        if name == MANIFEST or name.startswith(LOCK) or name.endswith((".partial", ".safetensors"))
    ]
    if len(ours) < len(present):
        other = sorted(set(present) - set(ours))[0]
        raise InputError(
            f"A cache has a folder of its own. Received: {str(directory)!r}, which holds "
            f"{other!r}. Give an empty folder, or one that does not exist."
        )
