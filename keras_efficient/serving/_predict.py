"""A quick look at what an exported model says of a text."""

import json
import math
import subprocess
import tempfile
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.runtime._run_script import run_script
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._find_version import find_version

_SCRIPT = Path(__file__).with_name("_predict_script.py")


def predict(directory, texts, *, signature="text", timeout=300.0) -> list:
    """Give texts to an exported SavedModel, in a process of its own that has no Keras.

    The version is compared with its manifest, and its graph searched for ops that do more than
    compute, before it is loaded: see `check_manifest` and `check_graph`. It is for a look, not for
    serving: each call starts TensorFlow.

    Args:
        directory: str or path, ".../NAME" for the newest version or ".../NAME/3" for version 3.
        texts: list of strings, at least one.
        signature: str, a signature with one input of strings, and the outputs "label" and
            "probabilities". Default "text".
        timeout: float, seconds after which the process is stopped. Default 300.

    Returns:
        A list with a dict for each text: "text", "label", "probability" (the highest) and
        "probabilities" ({label: float}; by the number of the class where labels are not known).

    Raises:
        InputError: no version, a damaged or a dangerous one, one without such a signature, or one
            that does not answer in time.

    Example:
        >>> ke.serving.predict("saved_models/reviews", ["a fine film"])  # doctest: +SKIP
        [{'text': 'a fine film', 'label': 'positive', 'probability': 0.98, 'probabilities': ...}]
    """
    texts = list(texts) if isinstance(texts, list | tuple) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise InputError(
            f"`texts` must be a list of strings, at least one. Received: {type(texts).__name__}. "
            "Give for example ['a fine film']."
        )
    version = find_version(directory)
    check_manifest(version)
    answer = _ask(version, signature, texts, timeout)
    if "error" in answer:
        raise InputError(answer["error"])
    try:
        return _read(version, texts, answer)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            "A model must give labels, and a probability for each class. Received: "
            f"{version}, which gave something else ({error}). Export it again with tokenizer=."
        ) from error


def _ask(version, signature, texts, timeout):
    with tempfile.TemporaryDirectory(prefix="keras_efficient-") as folder:
        folder = Path(folder)
        request = {"saved_model": str(version), "signature": signature, "texts": texts}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            child = run_script(_SCRIPT, folder, log_level="3", timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"A model must answer within {timeout:g} seconds. Received: {version}, which did "
                "not and was stopped. Give fewer texts, or do not trust this model."
            ) from error
        result = folder / "result.json"
        if child.returncode or not result.exists():
            last = (child.stderr.strip().splitlines() or ["no message"])[-1][:300]
            raise InputError(
                f"A version must load and run in TensorFlow. Received: {version}, which ended its "
                f"process with code {child.returncode} ({last}). Copy the version again, or export "
                "it again."
            )
        return json.loads(result.read_text(encoding="utf-8"))


def _read(version, texts, answer):
    rows = list(zip(texts, answer["labels"], map(_by_class, answer["probabilities"]), strict=True))
    classes = len(rows[0][2])
    names = _labels(version, classes)
    for _, _, probabilities in rows:
        if len(probabilities) != classes or not all(map(math.isfinite, probabilities)):
            raise ValueError("no finite number for each class")
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
    # One logit is the second of two classes.
    one = len(probabilities) == 1
    return [1.0 - probabilities[0], probabilities[0]] if one else probabilities


def _labels(version, classes):
    """The names of the classes, in the order of the probabilities."""
    names = []
    lines, values = version / "assets" / "labels.txt", version / "assets.extra" / "labels.json"
    if lines.is_file():
        names = lines.read_text(encoding="utf-8").splitlines()
    elif values.is_file():
        names = json.loads(values.read_text(encoding="utf-8"))
    fit = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not fit or not len(set(names)) == len(names) == classes:
        return [str(number) for number in range(classes)]
    return names
