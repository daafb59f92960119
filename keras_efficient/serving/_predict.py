"""`predict`: run an exported model on a few texts, in a separate process."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_efficient import tasks
from keras_efficient._errors import InputError
from keras_efficient.runtime._run_script import run_script
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._find_version import find_version

_SCRIPT = Path(__file__).with_name("_predict_script.py")


def predict(
    directory: str | os.PathLike,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    signature: str = "text",
    timeout: float = 300.0,
) -> list[dict[str, Any]]:
    """Run an exported SavedModel on texts, in a separate process without Keras.

    Before the version is loaded, `check_manifest` compares its files with the manifest, and
    `check_graph` compares its ops with those that are allowed. Where the system offers it, the
    process has no network and writes in one temporary folder only. Each call starts TensorFlow,
    which takes seconds; to answer requests, use TensorFlow Serving (`server_command`).

    Args:
        directory: path; ".../NAME" means the newest version, ".../NAME/3" version 3.
        texts: sequence of str, at least one; of tuples of two for a model of pairs of texts.
        signature: str, name of a signature that takes strings and has the outputs of the model's
            task: for classification "label" and "probabilities". Default: "text".
        timeout: float, seconds after which the process is stopped. Default: 300.0.

    Returns:
        A list with a dict for each text: the text, or pair of texts, by the names of the `inputs`
        of the model's task, "text" and "second_text" for most, and what the `decode` of the task
        returns. For classification that is "label", str; "probability", float, the highest one; and
        "probabilities", {label: float}, with the number of the class as its label where labels are
        not known.

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
    if not isinstance(texts, list | tuple) or not texts or not all(map(_is_text, texts)):
        raise InputError(
            f"`texts` must be a list of strings, at least one. Received: {type(texts).__name__}. "
            "Give for example ['a fine film'], or tuples of two strings for pairs."
        )
    version = find_version(directory)
    check_manifest(version)
    task = _task(version)
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) != task.texts:
            raise InputError(
                f"This model takes {_KINDS[task.texts]}. Received: {_KINDS[len(row)]}, "
                f"{text!r:.80}. Give each as the model was trained."
            )
    columns = dict(zip(task.inputs, map(list, zip(*rows, strict=True)), strict=True))
    result = _run(version, signature, columns, task.serves, timeout)
    if "error" in result:
        raise InputError(result["error"])
    try:
        answers = task.decode({**result["outputs"], **columns}, _labels(version))
        return [
            {**dict(zip(task.inputs, row, strict=True)), **answer}
            for row, answer in zip(rows, answers, strict=True)
        ]
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"A model must give the answers of its task, {task.name!r}. Received: "
            f"{version}, which gave something else ({error}). Export it again with tokenizer=."
        ) from error


_KINDS = {1: "single texts", 2: "pairs of texts"}


def _is_text(text):
    if isinstance(text, tuple | list):
        return len(text) == 2 and all(isinstance(part, str) for part in text)
    return isinstance(text, str)


def _task(version) -> tasks.Task:
    """Return the task that a version was exported for; older ones do not name it."""
    file = version / "assets.extra" / "task.json"
    if not file.is_file():
        return tasks.get()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return tasks.get(str(found["task"]), texts=found["texts"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"A version must name its task. Received: {file}, which cannot be read ({error}). "
            "Copy the version again, or export it again."
        ) from error


def _run(version, signature, texts, serves, timeout) -> dict[str, Any]:
    """Run the model in a process; return {"outputs": lists by name}, or {"error": why}."""
    with tempfile.TemporaryDirectory(prefix="keras_efficient-") as name:
        folder = Path(name)
        request = {
            "saved_model": str(version),
            "signature": signature,
            "texts": texts,
            "serves": serves,
        }
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


def _labels(version):
    """Return the names of the classes as they were exported, or None."""
    names: Any = None
    lines, values = version / "assets" / "labels.txt", version / "assets.extra" / "labels.json"
    if lines.is_file():
        names = lines.read_text(encoding="utf-8").splitlines()
    elif values.is_file():
        names = json.loads(values.read_text(encoding="utf-8"))
    strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if strings else None
