"""Tiny SavedModels that take texts, with manifests; also ones that contain malicious operations."""

import functools
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from keras_efficient.exporters._manifest import write_manifest

LABELS = ("negative", "positive")
REPORT = SimpleNamespace(
    created="2026-01-02T03:04:05+00:00",
    versions={"tensorflow": tf.__version__},
    data_fingerprint="abc",
    accuracy=0.75,
    bytes=123,
    latency_ms=None,
)


class Model(tf.Module):
    """Classify texts that contain "good" as positive; the labels come from an asset file."""

    def __init__(self, assets):
        super().__init__()
        self.scale = tf.Variable(2.0)
        self.labels = tf.saved_model.Asset(str(assets / "labels.txt"))
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                self.labels.asset_path,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
            ),
            "?",
        )

    def answer(self, texts):
        good = tf.cast(tf.strings.regex_full_match(texts, ".*good.*"), tf.float32)
        logits = self.scale * tf.stack([1.0 - good, good], axis=-1)
        return {
            "probabilities": tf.nn.softmax(logits),
            "label": self.table.lookup(tf.argmax(logits, -1)),
            "logits": logits,
        }


def save(folder, does=None, signatures=("text", "tokens"), **parts):
    """Write version `folder`, whose signature "text" also runs `does(texts)`.

    `parts` become attributes of the saved module.
    """
    with tempfile.TemporaryDirectory() as assets:
        (Path(assets) / "labels.txt").write_text("\n".join(LABELS) + "\n")
        model = Model(Path(assets))
        for name, part in parts.items():
            setattr(model, name, part)

        def text(**inputs):
            if does is None:
                return model.answer(inputs["text"])
            result = does(inputs["text"])
            with tf.control_dependencies([] if result is None else [result]):
                return model.answer(inputs["text"])

        def tokens(**inputs):
            return {"logits": model.scale * tf.cast(inputs["token_ids"], tf.float32)}

        specs = {
            "text": (text, {"text": tf.TensorSpec([None], tf.string, name="text")}),
            "tokens": (
                tokens,
                {"token_ids": tf.TensorSpec([None, None], tf.int32, name="token_ids")},
            ),
        }
        functions = {
            name: tf.function(specs[name][0], autograph=False).get_concrete_function(
                **specs[name][1]
            )
            for name in signatures
        }
        tf.saved_model.save(model, str(folder), signatures=functions)
    return sign(folder)


def sign(folder, **recipe):
    """Write a manifest that matches the current files of the folder."""
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(folder, report=REPORT, recipe={"quantize": None} | recipe)
    return folder


@functools.cache
def _kept():
    """Return the model that `copy` copies, in a folder that exists as long as this process."""
    kept = tempfile.TemporaryDirectory(prefix="text_models-")
    return kept, save(Path(kept.name) / "1")


def copy(folder):
    """Copy the harmless model to `folder`, for tests that read or damage it."""
    return Path(shutil.copytree(_kept()[1], folder))


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def writes(path):
    """Return an argument `does` of `save` that writes a file."""
    return lambda texts: tf.io.write_file(str(path), texts[0])


def calls_python(path):
    """Return an argument `does` of `save` that runs Python code."""

    def python(texts):
        path.touch()
        return np.int64(0)

    return lambda texts: tf.numpy_function(python, [texts], tf.int64)
