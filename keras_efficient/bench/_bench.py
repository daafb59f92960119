"""`bench`: time exported models against each other, interleaved, in separate processes."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, shortened
from keras_efficient.bench._bench_report import BenchReport
from keras_efficient.bench._cpu import cpu_name
from keras_efficient.bench._inputs import load_examples, resolve_shapes, synthetic_inputs
from keras_efficient.exporters._manifest import MANIFEST
from keras_efficient.metrics import classification_report, predicted_classes, scores_of
from keras_efficient.metrics._scores import class_numbers
from keras_efficient.runtime._model_process import (
    KINDS,
    ModelProcess,
    ModelProcessError,
    model_in,
)
from keras_efficient.runtime._time_in_turns import time_in_turns
from keras_efficient.serving._check_graph import check_graph
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._find_version import find_version

#: Examples per call while accuracy is measured.
_BATCH = 32


def bench(
    targets: str | os.PathLike | Iterable[str | os.PathLike] | Mapping[str, str | os.PathLike],
    *,
    batches: Sequence[int] = (1, 8, 32),
    lengths: Sequence[int] = (32, 64, 128),
    threads: int = 1,
    seconds: float = 3.0,
    vocabulary: int = 1000,
    data: str | os.PathLike | Mapping[str, Any] | None = None,
    inputs: Callable[[int, int], Mapping[str, Any]] | None = None,
    mixed: bool = False,
) -> BenchReport:
    """Measure latency, throughput, size and accuracy of exported models on the CPU.

    Each target is loaded in its own process, without Keras. The processes take turns: for every
    batch size and length, the first target runs for a fraction of the time, then the second and so
    on, five rounds in all, so that other load on the machine affects all targets alike. While one
    process runs, the others wait. Each turn starts with a call that is not timed.

    By default inputs are synthetic: random token ids, masks of ones, segment ids of zeros and
    normally distributed floats, with the names and dtypes of the target's inputs.

    Args:
        targets: dict of names to paths, a list of paths, or one path. A path is the folder of a
            SavedModel (its signature "serving_default" is run; in a folder of versions, the newest
            one), or a .tflite, .onnx or OpenVINO .xml file.
        batches: sequence of int, examples per call. Default: (1, 8, 32).
        lengths: sequence of int, tokens per example. Default: (32, 64, 128).
        threads: int, threads within one operation; operations run one after the other. Default: 1.
        seconds: float > 0, time that each target runs per case, at most; it makes at least 5
            calls. Default: 3.0.
        vocabulary: int > 1; token ids are drawn from 1 to `vocabulary - 1`. Default: 1000.
        data: labelled examples on which to measure accuracy: a dict of arrays named like the
            inputs, [examples, ...], and `labels`, int [examples]; or the path of an .npz file of
            them. Default: None, accuracy is not measured.
        inputs: function of (batch, length) that returns a dict of arrays named like the inputs.
            Default: None, synthetic inputs.
        mixed: bool, whether to also time batches of more than one example with synthetic inputs of
            unequal lengths: masks are ones for a quarter to all of each example, 62% on average.
            Default: False.

    Returns:
        A `BenchReport`.

    Raises:
        InputError: an argument is out of range; a target is missing or damaged, or fails to load
            or to run; the data lacks labels or an input; or a runtime is not installed.

    Examples:
        >>> import numpy as np
        >>> made = ke.export(model, "saved_models/tiny", sample=np.ones((2, 3)), latency=False)
        >>> report = ke.bench.bench(
        ...     {"ours": made.directory}, batches=[1], lengths=[1], seconds=0.1
        ... )
        >>> sorted(report.targets["ours"]["cases"]["batch 1, length 1"])
        ['calls', 'examples_per_second', 'median_ms', 'p95_ms', 'processor_ms']

    Reference:
        `Reddi et al., 2020, MLPerf Inference Benchmark <https://arxiv.org/abs/1911.02549>`_: calls
        follow one another as in its single-stream scenario.
    """
    _validate(batches, lengths, threads, seconds, vocabulary)
    found = {name: _find(path) for name, path in _by_name(targets).items()}
    examples = None if data is None else load_examples(data)
    evaluations = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keras_efficient-")))
        processes: dict[str, ModelProcess] = {}
        for name, (path, kind) in found.items():
            with _failure_as_input_error(path):
                processes[name] = stack.enter_context(ModelProcess(path, kind, threads))
        cases = _write_inputs(found, processes, batches, lengths, vocabulary, inputs, mixed, folder)
        if examples is not None:
            for name, process in processes.items():
                with _failure_as_input_error(found[name][0]):
                    evaluations[name] = _evaluation(process, examples, folder).to_dict()
        times = time_in_turns(
            processes, cases, seconds, lambda name: _failure_as_input_error(found[name][0])
        )
    sizes = {_case(b, n, m): b for n in lengths for b in batches for m in (False, True)}
    return BenchReport(
        threads,
        {
            name: {
                "path": str(path),
                "kind": kind,
                "bytes": _served_bytes(path),
                "accuracy": evaluations.get(name, {}).get("accuracy"),
                "evaluation": evaluations.get(name),
                "cases": {case: _statistics(t, sizes[case]) for case, t in times[name].items()},
            }
            for name, (path, kind) in found.items()
        },
        cpu_name(),
    )


def _validate(batches, lengths, threads, seconds, vocabulary):
    for name, values in {"batches": batches, "lengths": lengths}.items():
        positive = all(isinstance(v, int | np.integer) and v > 0 for v in values)
        if not positive or not values or len(set(values)) < len(values):
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


def _by_name(targets) -> dict[str, Any]:
    if not isinstance(targets, Mapping):
        paths = [targets] if isinstance(targets, str | os.PathLike) else list(targets)
        if len(set(map(str, paths))) < len(paths):
            raise InputError(
                f"Targets must differ. Received: {', '.join(map(str, paths))}. Name each once."
            )
        targets = {str(path): path for path in paths}
    if not targets:
        raise InputError("`targets` must hold at least one model. Received: none.")
    return dict(targets)


def _find(path) -> tuple[Path, str]:
    """Return the file or folder to load for a target, and its kind."""
    kind = KINDS.get(Path(path).suffix)
    if kind is not None:
        if not Path(path).is_file():
            raise InputError(f"A {Path(path).suffix} file must exist. Received: {path}.")
        return Path(path), kind
    folder = find_version(path)
    if (folder / MANIFEST).exists():
        check_manifest(folder)
    found = model_in(folder)
    if found is None:
        raise InputError(
            "A model's folder must hold saved_model.pb, model.tflite or model.onnx. Received: "
            f"{folder}, with none of them. Name the folder that was given to `ke.export`."
        )
    if found[1] == "saved_model":
        check_graph(folder)
    return found


@contextmanager
def _failure_as_input_error(path):
    """Turn the failure of a target's process into a one-line `InputError` that names the target."""
    try:
        yield
    except ModelProcessError as error:
        raise InputError(
            "A target must load and run in a process without Keras. Received: "
            f"{path}, whose process said: {shortened(str(error))}"
        ) from error


def _case(batch, length, mixed):
    return f"batch {batch}, length {'up to ' * mixed}{length}"


def _write_inputs(found, processes, batches, lengths, vocabulary, inputs, mixed, folder):
    """Write each target's inputs for each case to a file; return `{case: {target: path}}`."""
    cases = {}
    kinds = itertools.product(lengths, batches, (False, True) if mixed else (False,))
    for length, batch, unequal in kinds:
        if unequal and (batch == 1 or inputs is not None):
            continue
        given = None if inputs is None else inputs(batch, length)
        files = {}
        for name, process in processes.items():
            arrays = given
            if arrays is None:
                shapes = resolve_shapes(process.inputs, batch, length, found[name][0])
                arrays = synthetic_inputs(shapes, vocabulary, unequal)
            file = folder / f"{len(cases)}-{len(files)}.npz"
            np.savez(file, **arrays)
            files[name] = str(file)
        cases[_case(batch, length, unequal)] = files
    return cases


def _evaluation(process, examples, folder):
    """Return the `ClassificationReport` of a target on labelled examples."""
    labels, scores = examples["labels"], []
    inputs, outputs = folder / "inputs.npz", process.folder / "outputs.npz"
    for start in range(0, len(labels), _BATCH):
        rows = slice(start, start + _BATCH)
        np.savez(inputs, **{k: v[rows] for k, v in examples.items() if k != "labels"})
        process.ask(run=str(inputs), to=str(outputs))
        with np.load(outputs) as file:
            scores.append(scores_of({name: file[name] for name in file}))
    scores = np.concatenate(scores)
    return classification_report(labels, predicted_classes(scores), class_numbers(scores, labels))


def _served_bytes(path):
    """Return the size of the files that a server loads, without manifests and reports."""
    if path.is_file():
        # OpenVINO keeps the weights of model.xml in model.bin.
        weights = path.with_suffix(".bin") if path.suffix == ".xml" else None
        return path.stat().st_size + (weights.stat().st_size if weights else 0)
    files = [path / "saved_model.pb"]
    files += [f for name in ("variables", "assets") for f in (path / name).rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _statistics(measured, batch):
    times = measured["times"]
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "processor_ms": float(np.median(measured["processor"])),
        "examples_per_second": 1e3 * batch / float(np.median(times)),
        "calls": len(times),
    }
