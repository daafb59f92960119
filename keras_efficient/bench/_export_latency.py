"""`ExportLatency`: the latency of models as exported, measured on this machine and cached."""

import contextlib
import importlib.metadata
import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import keras_efficient
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.architecture import describe
from keras_efficient.architecture._activations import activation_of
from keras_efficient.architecture._dense_layer import activation_after
from keras_efficient.bench._bench import bench
from keras_efficient.bench._bench_report import latency_of
from keras_efficient.bench._cpu import cpu_name
from keras_efficient.bench._latency_cache import store, stored
from keras_efficient.exporters import Features, export, keras_export
from keras_efficient.flavor import Model

_QUANTIZE = (None, "int8", "int8-weights", "bfloat16")
#: Names of the formats, and the library besides TensorFlow that runs each.
_FORMATS = {
    "saved_model": ("SavedModel", None),
    "litert": ("LiteRT", "ai-edge-litert"),
    "onnx": ("ONNX", "onnxruntime"),
}
#: An export of a model with parts left out need not compute anything useful.
_TOLERANCE = 1e6
#: Token ids for the timing are below this.
_VOCABULARY = 1000
#: Examples of the sample that a model is exported with.
_EXAMPLES = 2


@dataclass(frozen=True)
class ExportLatency:
    """Latency of models in the form in which they will be served, for `ke.shrink(measure=…)`.

    Models are exported by `ke.export` into a temporary folder and timed in turns by
    `ke.bench.bench`, each in a process of its own without Keras, on synthetic texts without
    padding. The latency with one thread is the median of the processor time of a call, which other
    load of the machine hardly changes; with more threads, that of the time that passes. What was
    measured is kept in `$KERAS_EFFICIENT_CACHE/latencies`, or in
    `~/.cache/keras_efficient/latencies`, by the sizes of the models, the arguments, the CPU and the
    versions of the packages. So `ke.shrink` takes minutes for a new architecture, and seconds if it
    was measured before. Models of the same sizes have the same latency, whatever their weights.

    Args:
        quantize: as for `ke.export`: None, "int8", "int8-weights" or "bfloat16". Default: None.
        format: as for `ke.export`: "saved_model", "litert" or "onnx". Default: "saved_model".
        batch: number of texts per call. Default: 8.
        length: number of tokens per text. Default: 64.
        threads: number of threads within one operation. Default: 1.
        seconds: time that each model runs, at most; it makes at least 5 calls. Default: 2.0.
        baseline: what a speed-up is relative to. None: the whole model in the same form. "keras":
            the float32 SavedModel that the library's own `model.export` writes. Default: None.
        cache: whether to keep and reuse what was measured. Default: True.

    Raises:
        InputError: an argument is none of these. When models are measured: one cannot be exported
            in this form, or does not run at this length.

    Examples:
        >>> import numpy as np
        >>> measure = ke.bench.ExportLatency(quantize="int8", batch=8, length=64)
        >>> print(measure)
        int8 SavedModel, 8 x 64 tokens
        >>> # small, report = ke.shrink(model, speedup=5, measure=measure, data=batches)

    Reference:
        Kurtic, Frantar & Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language
        Models", whose latency table is measured in the target environment too.
    """

    quantize: str | None = None
    format: str = "saved_model"
    batch: int = 8
    length: int = 64
    threads: int = 1
    seconds: float = 2.0
    baseline: str | None = None
    cache: bool = True

    def __post_init__(self):
        allowed = {"quantize": _QUANTIZE, "format": (*_FORMATS,), "baseline": (None, "keras")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise InputError(
                    f"`{name}` must be one of {values}. Received: {getattr(self, name)!r}."
                )
        for name in ("batch", "length", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"`{name}` must be a positive integer. Received: {value!r}.")
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if not number or not 0 < self.seconds < math.inf:
            raise InputError(f"`seconds` must be a positive number. Received: {self.seconds!r}.")

    def __str__(self):
        form = f"{self.quantize or 'float32'} {_FORMATS[self.format][0]}"
        against = " against Keras' own float32 export" if self.baseline == "keras" else ""
        return f"{form}, {self.batch} x {self.length} tokens{against}"

    def __call__(self, model: Model, sample: Any) -> float:
        """Return the latency of a model in milliseconds.

        Args:
            model: a built model.
            sample: a batch as `fit` takes it, of which a few examples are used to export it.
        """
        return self.compare(model, [model], sample)[1][0]

    def compare(
        self, model: Model, others: Sequence[Model], sample: Any
    ) -> tuple[float, list[float]]:
        """Measure models in turns.

        Args:
            model: the model that the baseline is an export of.
            others: models to measure; `model` may be one of them.
            sample: a batch as `fit` takes it, of which a few examples are used to export them.

        Returns:
            The milliseconds of the baseline, and those of the others.
        """
        models = [model, *(other for other in others if other is not model)]
        if self.baseline == "keras":
            # The model in the form of the others is measured only if it is one of them.
            models = models if any(other is model for other in others) else models[1:]
        features = Features(model, sample, max_examples=_EXAMPLES)
        key = self._key(model, models, features)
        count = len(models) + (self.baseline == "keras")
        times = stored(key, count) if self.cache else None
        if times is None:
            times = self._measured(model, models, features)
            if self.cache:
                store(key, times)
        found = dict(zip(map(id, models), times[-len(models) :], strict=True))
        return times[0], [found[id(other)] for other in others]

    def _measured(self, model, models, features) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="keras_efficient-") as folder:
            paths = {}
            if self.baseline == "keras":
                paths["baseline"] = Path(folder) / "baseline"
                keras_export(model, paths["baseline"], features=features.inputs())
            for number, each in enumerate(models):
                with warnings.catch_warnings():
                    # That it is quantized as it is, for example.
                    warnings.simplefilter("ignore")
                    report = export(
                        each,
                        Path(folder) / str(number),
                        sample=(features.inputs(),),
                        quantize=self.quantize,
                        format=self.format,
                        tolerance=_TOLERANCE,
                        latency=False,
                    )
                paths[str(number)] = report.directory
            report = bench(
                paths,
                batches=[self.batch],
                lengths=[self.length],
                threads=self.threads,
                seconds=self.seconds,
                vocabulary=_vocabulary(features),
            )
        return [latency_of(target, self.threads) for target in report.targets.values()]

    def _key(self, model, models, features) -> dict[str, Any]:
        arguments = asdict(self)
        del arguments["cache"], arguments["seconds"]
        flavor = flavors.of(model)
        versions = {
            "tensorflow": tf.__version__,
            flavor.name: flavor.keras.__version__,
            "keras_efficient": keras_efficient.__version__,
        }
        runtime = _FORMATS[self.format][1]
        if runtime is not None:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[runtime] = importlib.metadata.version(runtime)
        return {
            **arguments,
            "cpu": cpu_name(),
            "versions": versions,
            "whole": _sizes(model, features),
            "models": [_sizes(each, features) for each in models],
        }


def _vocabulary(features: Features) -> int:
    """Return a number of token ids that the model has."""
    arrays = features.arrays.values()
    ids = [int(np.max(array, initial=0)) for array in arrays if array.dtype.kind in "iu"]
    return max(2, min(_VOCABULARY, max(ids, default=1) + 1))


def _sizes(model: Model, features: Features) -> dict[str, Any]:
    """Return what the latency of a model depends on, as JSON values."""
    flavor = flavors.of(model)
    layers = model._flatten_layers()
    blocks = [
        [
            block.attention.heads,
            block.attention.causal,
            block.norm_first,
            block.feed_forward.gate is not None,
            [
                _name(activation_of(function))
                for function in (
                    activation_after(block.feed_forward.intermediate),
                    block.feed_forward.activation,
                )
            ],
        ]
        for block in describe(model, sample=features.inputs()).blocks
    ]
    return {
        "layers": [[type(x).__name__, getattr(x, "compute_dtype", None)] for x in layers],
        "weights": [[list(map(int, v.shape)), v.dtype.name] for v in flavor.weights(model)],
        "blocks": blocks,
    }


def _name(function) -> str:
    if isinstance(function, str):
        return function
    return getattr(function, "__name__", type(function).__name__)
