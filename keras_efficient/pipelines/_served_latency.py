"""`ServedLatency`: the latency of a model in the form in which it will be served."""

import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.bench import bench
from keras_efficient.exporters import export
from keras_efficient.flavor import Model


class ServedLatency:
    """A function of a model that returns the latency of its int8 export, for `ke.shrink(measure=)`.

    The model is exported into a temporary folder, and timed in turns with a baseline. Returned is
    the baseline's latency times the ratio of the two, so that other load on the machine, and
    changes of the processor's frequency, have little effect. Models of equal shapes are measured
    once; the results are kept in a file.

    Args:
        baseline: path of the SavedModel that each model is timed against.
        sample: a batch as `fit` takes it, whose token ids all models have.
        baseline_ms: latency of the baseline in milliseconds. Default: None, it is measured.
        batch: texts per call. Default: 8.
        length: tokens per text. Default: 64.
        threads: threads within one operation. Default: 1.
        seconds: time for each of the two. Default: 2.0.
        vocabulary: token ids are drawn below this number. Default: 1000.
        file: path of a JSON file of results, which is read and extended. Default: None.

    Examples:
        >>> latency = ke.pipelines.ServedLatency("float32", sample)  # doctest: +SKIP
        >>> target = latency.baseline_ms / 10  # doctest: +SKIP
        >>> small, report = ke.shrink(
        ...     model, latency_ms=target, measure=latency, data=dataset
        ... )  # doctest: +SKIP

    Reference:
        Kurtic, Frantar & Alistarh 2023, "ZipLM", whose latency table is measured on the hardware
        that serves.
    """

    def __init__(
        self,
        baseline: str | os.PathLike,
        sample: Any,
        *,
        baseline_ms: float | None = None,
        batch: int = 8,
        length: int = 64,
        threads: int = 1,
        seconds: float = 2.0,
        vocabulary: int = 1000,
        file: str | os.PathLike | None = None,
    ):
        self.baseline, self.sample = Path(baseline), sample
        self.cases: dict[str, Any] = {
            "batches": [batch],
            "lengths": [length],
            "threads": threads,
            "seconds": seconds,
            "vocabulary": vocabulary,
        }
        #: Milliseconds of the baseline.
        self.baseline_ms = self._baseline() if baseline_ms is None else baseline_ms
        self.file = None if file is None else Path(file)
        self.known: dict[str, float] = {}
        if self.file is not None and self.file.exists():
            self.known = json.loads(self.file.read_text(encoding="utf-8"))

    def __call__(self, model: Model) -> float:
        """Return the milliseconds of a call."""
        key = _shapes(model)
        if key not in self.known:
            self.known[key] = self._measured(model)
            if self.file is not None:
                partial = self.file.with_name(f".{self.file.name}.partial")
                partial.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
                os.replace(partial, self.file)
        return self.known[key] * self.baseline_ms

    def _baseline(self):
        report = bench({"baseline": self.baseline}, **self.cases)
        (case,) = report.targets["baseline"]["cases"].values()
        return case["median_ms"]

    def _measured(self, model):
        with tempfile.TemporaryDirectory(prefix="keras_efficient-") as folder:
            target = Path(folder) / "model"
            options = {"sample": self.sample, "tolerance": 1e9, "latency": False}
            with warnings.catch_warnings():
                # Ranges of a sample will do for a time, and outputs need not agree.
                warnings.simplefilter("ignore")
                try:
                    made = export(model, target, quantize="int8", **options)
                except InputError:
                    made = export(model, target, quantize="int8-weights", **options)
            report = bench({"baseline": self.baseline, "model": made.directory}, **self.cases)
        (ratio,) = report.speedup("baseline")["model"].values()
        return 1 / ratio


def _shapes(model):
    """Return what models of equal latency have in common: the class and the shapes of weights."""
    shapes = [tuple(v.shape) for v in flavors.of(model).weights(model)]
    return hashlib.sha256(f"{type(model).__name__} {shapes}".encode()).hexdigest()[:24]
