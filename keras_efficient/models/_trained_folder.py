"""The folder of a trained classifier: what its manifest says, and where to find it."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._read_json import check_file, read_json
from keras_efficient.tasks._registry import DEFAULT
from keras_efficient.tasks._task import HEADS

MANIFEST = "keras_efficient.json"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.weights.h5", "tokenizer.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER)
FORMAT = 1
#: Folders of trained models beside the exported versions of NAME: trained-1, trained-2, ...
_BESIDE_VERSIONS = re.compile(r"trained-([1-9]\d*)")
_MAX_BYTES = 2**50


@dataclass(frozen=True)
class TrainedModelInfo:
    """Facts about a trained model that `ke.models.save` wrote.

    Attributes:
        directory: path of its folder.
        library: "keras" or "tf_keras".
        label_names: tuple of the names of the classes, in the order of the logits.
        task: name of the task that it was trained for. Default: "classification".
        texts: number of texts per example, 2 for pairs. Default: 1.
        head: where the head has outputs, as in `ke.tasks.Task`. Default: "text".
        tokenizer: dict with the "inputs", "pad_id", "max_length" and "decoder_start_id" of its
            tokenizer.
        exact_gelu: whether a Keras 3 model computes GELU exactly, where KerasHub approximates.
        facts: dict of what else was given to `save`, such as how the data was divided.
        files: dict of a file's name to its "bytes" and "sha256".
    """

    directory: Path
    library: str
    label_names: tuple[str, ...]
    tokenizer: dict[str, Any]
    exact_gelu: bool = False
    task: str = DEFAULT
    texts: int = 1
    head: str = "text"
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def trained_folder(path: Path) -> Path | None:
    """Return the folder of a trained model that a path refers to, or None.

    It is the path itself, or the newest trained model beside the versions in it.
    """
    if (path / MANIFEST).is_file():
        return path
    if not path.is_dir():
        return None
    found = {int(m[1]): p for p in path.iterdir() if (m := _BESIDE_VERSIONS.fullmatch(p.name))}
    found = {number: p for number, p in found.items() if (p / MANIFEST).is_file()}
    return found[max(found)] if found else None


def free_folder(versions: Path, number: int) -> Path:
    """Return a path for the trained model of a version, beside the versions of NAME."""
    while (path := versions / f"trained-{number}").exists():
        # Left from a version that was deleted.
        number += 1
    return path


def read_info(folder: Path) -> TrainedModelInfo:
    """Read the manifest of a trained model and compare its files with it.

    Raises:
        InputError: the manifest cannot be used, or a file is not as it was written.
    """
    manifest = read_json(folder / MANIFEST, "the facts about a trained model")
    problem = _problem(manifest)
    if problem is not None:
        raise InputError(
            f"{MANIFEST} must be as ke.models.save writes it. Received: {str(folder)!r}, where "
            f"{problem}. Copy the folder again from where it was made."
        )
    for name in FILES:
        check_file(folder / name, "a part of the trained model", _MAX_BYTES)
        if file_facts(folder / name) != manifest["files"][name]:
            raise InputError(
                "The files of a trained model must be as they were written. Received: "
                f"{str(folder / name)!r}, whose size or SHA-256 differs. Copy the folder again "
                "from where it was made."
            )
    return TrainedModelInfo(
        directory=folder,
        library=manifest["library"],
        label_names=tuple(manifest["label_names"]),
        tokenizer=manifest["tokenizer"],
        exact_gelu=manifest["exact_gelu"],
        # Folders of classifiers have been written without a task.
        task=manifest.get("task", DEFAULT),
        texts=manifest.get("texts", 1),
        head=manifest.get("head", "text"),
        facts=manifest["facts"],
        files=manifest["files"],
    )


def _problem(manifest) -> str | None:
    """Return what is wrong with a manifest, or None."""
    if manifest.get("format") != FORMAT:
        return f"its format is {manifest.get('format')!r:.40} instead of {FORMAT}"
    kinds = {"library": str, "label_names": list, "tokenizer": dict, "exact_gelu": bool}
    kinds |= {"facts": dict, "files": dict}
    kinds |= {n: kind for n, kind in (("task", str), ("texts", int)) if n in manifest}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return f"{name!r} is {manifest.get(name)!r:.40}"
    if manifest.get("texts", 1) not in (1, 2):
        return f"'texts' is {manifest['texts']!r:.40}"
    if manifest.get("head", "text") not in HEADS:
        return f"'head' is {manifest['head']!r:.40}"
    if not all(isinstance(name, str) for name in manifest["label_names"]):
        return "a label is no string"
    words = manifest["tokenizer"]
    if not {"inputs", "pad_id", "max_length"} <= set(words):
        return "the tokenizer's 'inputs', 'pad_id' or 'max_length' are missing"
    missing = [name for name in FILES if name not in manifest["files"]]
    return f"the file {missing[0]!r} is missing" if missing else None


def file_facts(path: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
