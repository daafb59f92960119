"""Time exported models against each other, interleaved, each in a process of its own."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.bench._bench_report import BenchReport
from keras_efficient.bench._inputs import labelled, shaped, synthetic
from keras_efficient.runtime._process import Child, ChildError
from keras_efficient.serving._check_graph import check_graph
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._find_version import find_version
from keras_efficient.versions._manifest import MANIFEST

#: Every target has so many turns for each case; noise that comes and goes hits all alike.
_ROUNDS, _CALLS = 5, 50
#: Examples in one call while accuracy is measured.
_BATCH = 32
_KINDS = {".tflite": "litert", ".onnx": "onnx"}


def bench(
    targets,
    *,
    batches=(1, 8, 32),
    lengths=(32, 64, 128),
    threads=1,
    seconds=3.0,
    vocabulary=1000,
    data=None,
    inputs=None,
) -> BenchReport:
    """Time exported models on the CPU: latency, throughput, bytes and accuracy.

    Each target is loaded by a process of its own without Keras. The processes take turns: for every
    batch size and length the first target runs for a moment, then the second and so on, then all
    again, five times, so that what else the machine does hits all alike. While one runs the others
    wait. A turn begins with a call that is not counted.

    Inputs are made up: token ids within the vocabulary, masks of ones, segments of zeros, by the
    names and dtypes of each target; floats are normal.

    Args:
        targets: dict of names to paths, or a list of paths: a SavedModel's folder (its signature
            "serving_default"; of a folder of versions the newest), a .tflite or an .onnx file.
        batches: sequence of int, examples in a call. Default (1, 8, 32).
        lengths: sequence of int, tokens in an example. Default (32, 64, 128).
        threads: int, threads of one operation; operations run one after the other. Default 1.
        seconds: float > 0, how long each target runs for each case, at most; it makes at least
            5 calls. Default 3.
        vocabulary: int > 1, token ids are from 1 to `vocabulary - 1`. Default 1000.
        data: None (default), or labelled examples for the accuracy: path of an .npz file, or dict,
            of arrays by the names of the inputs and `labels`, int [examples].
        inputs: None (default), or function of (batch, length) to a dict of arrays by the names of
            the inputs, instead of made-up ones.

    Returns:
        A `BenchReport`.

    Raises:
        InputError: an argument out of range; a target that is missing, damaged, does not load or
            does not run; data without labels, or without an input; a runtime is not installed.

    Example:
        >>> import numpy as np
        >>> from keras_efficient.bench._bench import bench
        >>> made = ke.export(model, "saved_models/tiny", sample=np.ones((2, 3)), latency=False)
        >>> report = bench(
        ...     {"ours": made.directory}, batches=[1], lengths=[1], seconds=0.1
        ... )
        >>> sorted(report.targets["ours"]["cases"]["batch 1, length 1"])
        ['calls', 'examples_per_second', 'median_ms', 'p95_ms']
    """
    _check(batches, lengths, threads, seconds, vocabulary)
    found = {name: _find(path) for name, path in _named(targets).items()}
    data = None if data is None else labelled(data)
    times, accuracy = {name: {} for name in found}, {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keras_efficient-")))
        children = {}
        for name, (path, kind) in found.items():
            with _said_of(path):
                children[name] = stack.enter_context(Child(path, kind, threads))
        cases = _cases(found, children, batches, lengths, vocabulary, inputs, folder)
        if data is not None:
            for name, child in children.items():
                with _said_of(found[name][0]):
                    accuracy[name] = _accuracy(child, data, folder)
        for turn in range(_ROUNDS):
            for case, files in cases.items():
                order = list(children)
                # Nobody always runs after the same one.
                for name in order[turn % len(order) :] + order[: turn % len(order)]:
                    with _said_of(found[name][0]):
                        answer = children[name].ask(
                            time=files[name], calls=_CALLS, seconds=seconds / _ROUNDS
                        )
                    times[name].setdefault(case, []).extend(answer["times"])
    sizes = {f"batch {b}, length {n}": b for n in lengths for b in batches}
    return BenchReport(
        threads,
        {
            name: {
                "path": str(path),
                "kind": kind,
                "bytes": _bytes(path),
                "accuracy": accuracy.get(name),
                "cases": {case: _figures(t, sizes[case]) for case, t in times[name].items()},
            }
            for name, (path, kind) in found.items()
        },
    )


def _check(batches, lengths, threads, seconds, vocabulary):
    for name, values in {"batches": batches, "lengths": lengths}.items():
        fine = all(isinstance(v, int | np.integer) and v > 0 for v in values)
        if not fine or not values or len(set(values)) < len(values):
            raise InputError(
                f"`{name}` must be different positive integers, at least one. Received: "
                f"{list(values)}."
            )
    if not isinstance(threads, int) or not 1 <= threads <= 4096:
        raise InputError(f"`threads` must be an integer from 1 to 4096. Received: {threads!r}.")
    if not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
        raise InputError(f"`seconds` must be positive and finite. Received: {seconds!r}.")
    if not isinstance(vocabulary, int) or vocabulary < 2:
        raise InputError(f"`vocabulary` must be an integer above 1. Received: {vocabulary!r}.")


def _named(targets):
    if not isinstance(targets, Mapping):
        listed = [targets] if isinstance(targets, str | os.PathLike) else list(targets)
        if len(set(map(str, listed))) < len(listed):
            raise InputError(
                f"Targets must differ. Received: {', '.join(map(str, listed))}. Name each once."
            )
        targets = {str(path): path for path in listed}
    if not targets:
        raise InputError("`targets` must hold at least one model. Received: none.")
    return dict(targets)


def _find(path):
    """`(path, kind)` of a target."""
    kind = _KINDS.get(Path(path).suffix)
    if kind is not None:
        if not Path(path).is_file():
            raise InputError(f"A {Path(path).suffix} file must exist. Received: {path}.")
        return Path(path), kind
    folder = find_version(path)
    if (folder / MANIFEST).exists():
        check_manifest(folder)
    if (folder / "saved_model.pb").is_file():
        check_graph(folder)
        return folder, "saved_model"
    if (folder / "model.tflite").is_file():
        return folder / "model.tflite", "litert"
    raise InputError(
        "A model's folder must hold saved_model.pb or model.tflite. Received: "
        f"{folder}, with neither. Name the folder that was given to `ke.export`."
    )


class _said_of:
    """A context in which a process's failure is bad input: one line that names the target."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, ChildError):
            raise InputError(
                "A target must load and run in a process without Keras. Received: "
                f"{self.path}, whose process said: {str(error)[:500]}"
            ) from error


def _cases(found, children, batches, lengths, vocabulary, inputs, folder):
    """{case: {target: file with its inputs}}."""
    cases = {}
    for length in lengths:
        for batch in batches:
            case = f"batch {batch}, length {length}"
            given = None if inputs is None else inputs(batch, length)
            for name, child in children.items():
                shapes = shaped(child.inputs, batch, length, found[name][0])
                made = synthetic(shapes, vocabulary) if given is None else given
                file = folder / f"{len(cases)}-{list(children).index(name)}.npz"
                np.savez(file, **made)
                cases.setdefault(case, {})[name] = str(file)
    return cases


def _accuracy(child, data, folder):
    """The share of examples whose largest output is at their label."""
    labels, right = data["labels"], 0
    inputs, answer = folder / "inputs.npz", folder / "outputs.npz"
    for start in range(0, len(labels), _BATCH):
        np.savez(
            inputs,
            **{k: v[start : start + _BATCH] for k, v in data.items() if k != "labels"},
        )
        child.ask(run=str(inputs), to=str(answer))
        with np.load(answer) as file:
            names = [n for n in ("logits", "probabilities") if n in file] or list(file)
            scores = file[names[0]]
        if len(names) != 1 or scores.ndim != 2:
            raise InputError(
                "Accuracy needs one output [examples, classes], or one called logits. Received: "
                f"{child.outputs}. Leave the data out."
            )
        right += int((scores.argmax(-1) == labels[start : start + _BATCH]).sum())
    return right / len(labels)


def _bytes(path):
    """Bytes of what a server loads, without reports and manifests beside it."""
    if path.is_file():
        return path.stat().st_size
    parts = [path / "saved_model.pb"]
    parts += [f for name in ("variables", "assets") for f in (path / name).rglob("*")]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _figures(times, batch):
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "examples_per_second": 1e3 * batch / float(np.median(times)),
        "calls": len(times),
    }
