"""Speed and memory of training: examples and tokens per second, step times, peak memory."""

import resource
import sys
import time
from typing import Any

import numpy as np

from keras_efficient.flavor import Callback
from keras_efficient.training import _example_counter as example_counter

#: Number of first steps left out of the rates, because they trace and compile the graph.
WARM_UP_STEPS = 2


class Throughput(Callback):
    """Measure examples and real tokens per second, step times and peak memory of a `fit`.

    It counts in the training graph, so that it works with any data: examples are the first
    dimension of the batch; tokens are the ones in its mask ("padding_mask", "attention_mask" or
    "input_mask"), without padding. Adds `examples_per_second` and `tokens_per_second` of the epoch
    to the epoch's logs.

    The first two steps of a `fit`, which trace the graph, are left out of the rates; their time is
    `first_step_seconds`.

    Attributes:
        examples: int, number of examples of the rated steps.
        tokens: int, number of tokens of the rated steps; None for batches without a mask.
        padding_share: float, 1 - tokens / positions; None for batches without a mask.
        examples_per_second: float, over the rated steps; None if there is none.
        tokens_per_second: float, over the rated steps; None without a mask or rated steps.
        step_seconds: dict of "p50", "p95" and "max", in seconds; empty without rated steps.
        first_step_seconds: float, total time of the steps left out, in seconds.
        peak_memory_bytes: int, of the process (resident set) or, with GPUs, of the fullest GPU.

    Examples:
        >>> speed = ke.callbacks.Throughput()
        >>> model.fit(dataset, callbacks=[speed])
        >>> print(speed)

    Reference:
        The definition of throughput of MLPerf Training: examples per second after warm-up.
    """

    def __init__(self):
        self._steps = []

    def set_model(self, model: Any):
        if model is not self.model:
            self.model = model
            self._counts = example_counter.attach(model)
        self._steps = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None):
        self._epoch = len(self._steps)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None):
        self._started = time.perf_counter()
        self._before = self._counts.read()

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        seconds = time.perf_counter() - self._started
        self._steps.append((seconds, *(self._counts.read() - self._before)))

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        if logs is not None:
            rates = _rates(self._steps[max(self._epoch, WARM_UP_STEPS) :])
            logs.update({name: rate for name, rate in rates.items() if rate is not None})

    def on_train_end(self, logs: dict | None = None):
        example_counter.detach(self.model, self._counts)
        self.model = None

    @property
    def last_step(self) -> dict[str, Any]:
        """`examples_per_second` and `tokens_per_second` of the last step."""
        return _rates(self._steps[-1:])

    @property
    def _rated(self):
        return self._steps[WARM_UP_STEPS:]

    @property
    def examples(self) -> int:
        return int(sum(step[1] for step in self._rated))

    @property
    def tokens(self) -> int | None:
        return int(sum(step[2] for step in self._rated)) if self._masked else None

    @property
    def padding_share(self) -> float | None:
        if not self._masked:
            return None
        return 1.0 - sum(s[2] for s in self._steps) / sum(s[3] for s in self._steps)

    @property
    def _masked(self):
        return any(step[3] for step in self._steps)

    @property
    def examples_per_second(self) -> float | None:
        return _rates(self._rated)["examples_per_second"]

    @property
    def tokens_per_second(self) -> float | None:
        return _rates(self._rated)["tokens_per_second"]

    @property
    def step_seconds(self) -> dict[str, float]:
        seconds = [step[0] for step in self._rated]
        if not seconds:
            return {}
        p50, p95 = np.percentile(seconds, [50, 95])
        return {"p50": float(p50), "p95": float(p95), "max": max(seconds)}

    @property
    def first_step_seconds(self) -> float:
        return sum(step[0] for step in self._steps[:WARM_UP_STEPS])

    @property
    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes()

    def __str__(self):
        parts = [
            f"{self.examples_per_second:.1f} examples/s" if self.examples_per_second else None,
            f"{self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second else None,
            f"{self.padding_share:.1%} padding" if self._masked else None,
            f"{self.peak_memory_bytes / 1e9:.2f} GB at most",
        ]
        return ", ".join(part for part in parts if part)


def peak_memory_bytes() -> int:
    """Return the peak memory use so far in bytes, of the fullest GPU or of this process."""
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus)
    # ru_maxrss is in kibibytes on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _rates(steps):
    seconds = sum(step[0] for step in steps)
    if not seconds:
        return {"examples_per_second": None, "tokens_per_second": None}
    tokens = sum(step[2] for step in steps)
    masked = any(step[3] for step in steps)
    return {
        "examples_per_second": float(sum(step[1] for step in steps) / seconds),
        "tokens_per_second": float(tokens / seconds) if masked else None,
    }
