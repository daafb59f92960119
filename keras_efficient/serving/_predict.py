"""`predict`: classify a few texts with an exported model, in a separate process."""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.runtime._run_script import run_script
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._find_version import find_version

_SCRIPT = Path(__file__).with_name("_predict_script.py")


def predict(
    directory: str | os.PathLike,
    texts: Sequence[str],
    *,
    signature: str = "text",
    timeout: float = 300.0,
) -> list[dict[str, Any]]:
    """Classify texts with an exported SavedModel, in a separate process without Keras.

    Before the version is loaded, `check_manifest` compares its files with the manifest, and
    `check_graph` compares its ops with those that are allowed. Where the system offers it, the
    process has no network and writes in one temporary folder only. Each call starts TensorFlow,
    which takes seconds; to answer requests, use TensorFlow Serving (`server_command`).

    Args:
        directory: path; ".../NAME" means the newest version, ".../NAME/3" version 3.
        texts: sequence of str, at least one.
        signature: str, name of a signature with one string input and the outputs "label" and
            "probabilities". Default: "text".
        timeout: float, seconds after which the process is stopped. Default: 300.0.

    Returns:
        A list with a dict for each text: "text"; "label", str; "probability", float, the highest
        one; and "probabilities", {label: float}, with the number of the class as its label where
        labels are not known.

    Raises:
        InputError: there is no version; it is damaged, does more than compute or has no such
            signature; or it does not answer in time.

    Examples:
        >>> ke.serving.predict("saved_models/reviews", ["a fine film"])  # doctest: +SKIP
        [{'text': 'a fine film', 'label': 'positive', 'probability': 0.98, 'probabilities': ...}]

    Reference:
        TensorFlow, `tf.saved_model.load
        <https://www.tensorflow.org/api_docs/python/tf/saved_model/load>`_.
    """
    texts = list(texts) if isinstance(texts, list | tuple) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise InputError(
            f"`texts` must be a list of strings, at least one. Received: {type(texts).__name__}. "
            "Give for example ['a fine film']."
        )
    version = find_version(directory)
    check_manifest(version)
    result = _run(version, signature, texts, timeout)
    if "error" in result:
        raise InputError(result["error"])
    try:
        return _predictions(version, texts, result)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            "A model must give labels, and a probability for each class. Received: "
            f"{version}, which gave something else ({error}). Export it again with tokenizer=."
        ) from error


def _run(version, signature, texts, timeout) -> dict[str, Any]:
    """Run the model in a process; return labels and probabilities, or {"error": why}."""
    with tempfile.TemporaryDirectory(prefix="keras_efficient-") as name:
        folder = Path(name)
        request = {"saved_model": str(version), "signature": signature, "texts": texts}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            process = run_script(_SCRIPT, folder, log_level="3", timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"A model must answer within {timeout:g} seconds. Received: {version}, which did "
                "not and was stopped. Give fewer texts, or do not trust this model."
            ) from error
        result = folder / "result.json"
        if process.returncode or not result.exists():
            last = (process.stderr.strip().splitlines() or ["no message"])[-1][:300]
            raise InputError(
                f"A version must load and run in TensorFlow. Received: {version}, which ended its "
                f"process with code {process.returncode} ({last}). Copy the version again, or "
                "export it again."
            )
        return json.loads(result.read_text(encoding="utf-8"))


def _predictions(version, texts, result):
    rows = list(zip(texts, result["labels"], map(_by_class, result["probabilities"]), strict=True))
    classes = len(rows[0][2])
    names = _labels(version, classes)
    for _, _, probabilities in rows:
        if len(probabilities) != classes or not all(map(math.isfinite, probabilities)):
            raise ValueError("not a finite number for each class")
    return [
        {
            "text": text,
            "label": label,
            "probability": max(probabilities),
            "probabilities": dict(zip(names, probabilities, strict=True)),
        }
        for text, label, probabilities in rows
    ]


def _by_class(probabilities):
    # A single probability is that of the second of two classes.
    single = len(probabilities) == 1
    return [1.0 - probabilities[0], probabilities[0]] if single else probabilities


def _labels(version, classes):
    """Return the names of the classes, in the order of the probabilities."""
    names = []
    lines, values = version / "assets" / "labels.txt", version / "assets.extra" / "labels.json"
    if lines.is_file():
        names = lines.read_text(encoding="utf-8").splitlines()
    elif values.is_file():
        names = json.loads(values.read_text(encoding="utf-8"))
    strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not strings or not len(set(names)) == len(names) == classes:
        return [str(number) for number in range(classes)]
    return names
