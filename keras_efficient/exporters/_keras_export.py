"""`keras_export`: the float32 SavedModel that Keras itself writes, as a baseline."""

import contextlib
import io
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.compression.structured.recipes import is_functional
from keras_efficient.flavor import Model


def keras_export(model: Model, directory: str | os.PathLike, *, features: Any) -> Path:
    """Write a model as the library's own `model.export` does, the baseline of comparisons.

    A functional model is written by `model.export`. Hugging Face models, whose `model.export`
    would fix the length of texts, are written by the library's `ExportArchive` for any length.
    The folder is complete or it does not exist.

    Args:
        model: a built model of either library.
        directory: path of the folder to write; one that exists is returned as it is.
        features: a batch of features as `fit` takes it, such as a dict of int32 arrays
            [batch, length].

    Returns:
        The path of the folder.

    Examples:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.mkdtemp() + "/keras"
        >>> path = ke.exporters.keras_export(model, folder, features=np.ones((1, 3)))
        >>> (path / "saved_model.pb").exists()
        True

    Reference:
        `keras.Model.export` and `tf_keras.export.ExportArchive`.
    """
    target = Path(directory)
    if target.exists():
        return target
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Both libraries print the signature.
        with contextlib.redirect_stdout(io.StringIO()):
            _write(model, str(partial), features)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(model: Any, path, features):
    if is_functional(model) or not isinstance(features, Mapping):
        model.export(path)
        return
    flavor = flavors.of(model)
    specs = {
        name: tf.TensorSpec([None, None], tf.as_dtype(value.dtype), name=name)
        for name, value in features.items()
    }

    def serve(inputs):
        outputs = flavor.call(model, inputs, training=False)
        return {"logits": getattr(outputs, "logits", outputs)}

    archive = flavor.keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, [specs])
    archive.write_out(path)
