"""`export_fastest`: export in several formats, time them, and recommend one."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, VerificationError, shortened
from keras_efficient.data._write_json import write_json
from keras_efficient.distribute._cluster import cluster_of
from keras_efficient.exporters._arguments import FORMATS
from keras_efficient.exporters._destination import check_destination, is_version
from keras_efficient.exporters._export import export
from keras_efficient.exporters._export_report import ExportReport
from keras_efficient.exporters._signature import Features
from keras_efficient.flavor import Model
from keras_efficient.runtime._model_process import ModelProcess, ModelProcessError, model_in
from keras_efficient.runtime._time_in_turns import time_in_turns

CANDIDATES = "candidates.json"


def export_fastest(
    model: Model,
    directory: str | os.PathLike,
    *,
    sample: Any,
    formats: Sequence[str] = FORMATS,
    batches: Sequence[int] = (1, 8),
    lengths: Sequence[int] | None = None,
    threads: int = 1,
    seconds: float = 2.0,
    **options: Any,
) -> ExportReport:
    """Export a model in several formats, time them on this machine, and recommend the fastest.

    Each format is exported by `ke.export` into a folder of its own, ".../NAME/FORMAT/1", and kept.
    A format that this machine or the options do not allow, or whose outputs differ too much, is
    listed with the reason, and the others go on. Those that are written are then timed in turns, as
    `ke.bench.bench` does, on examples of the sample with their own padding.

    Args:
        model: as for `ke.export`.
        directory: as for `ke.export`: ".../NAME", or ".../NAME/3" for version 3 of each format.
        sample: as for `ke.export`.
        formats: the candidates. Default: "saved_model", "litert" and "onnx".
        batches: sequence of int, examples per call. Default: (1, 8).
        lengths: sequence of int, tokens per example: the sample's features of variable length are
            cut to that, or repeated. Default: None, the length of the sample.
        threads: int, threads within one operation. Default: 1.
        seconds: float, time that each format runs per batch size and length, at most. Default: 2.0.
        **options: other arguments of `ke.export`.

    Returns:
        The `ExportReport` of the fastest format, by the geometric mean over batch sizes and
        lengths, with `candidates` and `recommended`, which are also written to
        ".../NAME/candidates.json".

    Raises:
        InputError: an argument is invalid, or no format is possible.
        VerificationError: no format is possible, and the first one was refused by its outputs.

    Examples:
        >>> import numpy as np
        >>> report = ke.exporters.export_fastest(
        ...     model, "saved_models/tiny", sample=np.ones((2, 3)), formats=["saved_model"],
        ...     batches=[1], seconds=0.1, latency=False,
        ... )
        >>> report.recommended, list(report.candidates)
        ('saved_model', ['saved_model'])

    Reference:
        `ke.bench.bench`.
    """
    _validate(formats, batches, lengths, threads, seconds)
    check_destination(directory)
    path = Path(directory).expanduser().absolute()
    folder, number = (path.parent, path.name) if is_version(path) else (path, "")
    features = Features(model, sample)
    reports: dict[str, ExportReport] = {}
    refused: dict[str, Exception] = {}
    for format in formats:
        target = folder / format / number
        try:
            reports[format] = export(model, target, sample=sample, format=format, **options)
        except (InputError, VerificationError) as error:
            refused[format] = error
    if not reports:
        raise next(iter(refused.values()))
    cluster = cluster_of(model)
    if cluster is not None and cluster.index > 0:
        # Only the exports of the first worker are kept.
        return next(iter(reports.values()))
    medians, failed = _time(reports, features, batches, lengths, threads, seconds)
    candidates = {
        format: {
            "directory": f"{format}/{reports[format].directory.name}",
            "bytes": reports[format].bytes,
            "max_abs_difference": reports[format].max_abs_difference,
            "median_ms": medians[format],
        }
        for format in medians
    }
    means = {format: _geometric_mean(found) for format, found in medians.items()}
    for format, mean in means.items():
        candidates[format]["speed"] = max(means.values()) / mean
    refused |= failed
    candidates |= {format: {"refused": shortened(str(e))} for format, e in refused.items()}
    recommended = min(means, key=lambda format: means[format])
    write_json(folder / CANDIDATES, {"recommended": recommended, "candidates": candidates})
    return dataclasses.replace(reports[recommended], candidates=candidates, recommended=recommended)


def _validate(formats, batches, lengths, threads, seconds):
    if not formats or len(set(formats)) < len(formats) or set(formats) - {*FORMATS}:
        raise InputError(f"`formats` must be some of {FORMATS}. Received: {formats!r}.")
    for name, values in (("batches", batches), ("lengths", lengths)):
        values = [1] if values is None else list(values)
        if not values or not all(isinstance(v, int | np.integer) and v > 0 for v in values):
            raise InputError(
                f"`{name}` must be positive integers, at least one. Received: {values!r}."
            )
    if not isinstance(threads, int) or threads < 1:
        raise InputError(f"`threads` must be a positive integer. Received: {threads!r}.")
    if not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
        raise InputError(f"`seconds` must be positive and finite. Received: {seconds!r}.")


def _time(reports, features, batches, lengths, threads, seconds):
    """Return the medians in milliseconds, `{format: {case: median}}`, and what failed to run."""
    failed: dict[str, Exception] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keras_efficient-")))
        files = {}
        for batch in batches:
            for length in lengths or [None]:
                case = f"batch {batch}" + (f", length {length}" if length else "")
                files[case] = str(folder / f"{len(files)}.npz")
                np.savez(files[case], **_examples(features, batch, length))
        processes = {}
        for format, report in reports.items():
            try:
                model = model_in(report.directory)
                assert model is not None
                process = ModelProcess(*model, threads)
                processes[format] = stack.enter_context(process)
                for file in files.values():
                    process.ask(time=file, calls=1, seconds=0.001)
            except ModelProcessError as error:
                processes.pop(format, None)
                failed[format] = error
        if not processes:
            raise InputError(
                "A candidate must run at the given batch sizes and lengths. Received: "
                f"batches={list(batches)} and lengths={lengths}, at which none does: "
                f"{shortened(str(next(iter(failed.values()))))}."
            )
        cases = {case: dict.fromkeys(processes, file) for case, file in files.items()}
        times = time_in_turns(processes, cases, seconds, lambda _: nullcontext())
    medians = {
        format: {case: float(np.median(found["times"])) for case, found in by_case.items()}
        for format, by_case in times.items()
    }
    return medians, failed


def _examples(features, batch, length):
    """Return `batch` examples of the sample, with `length` tokens if their length is variable."""
    variable = {
        name for name, spec in features.specs().items() if spec.shape[1:2].as_list() == [None]
    }
    arrays = {}
    for name, array in features.arrays.items():
        array = np.take(array, np.arange(batch) % len(array), axis=0)
        if length is not None and name in variable:
            array = np.take(array, np.arange(length) % array.shape[1], axis=1)
        arrays[name] = array
    return arrays


def _geometric_mean(medians):
    return math.exp(sum(map(math.log, medians.values())) / len(medians))
