"""Measure how fast and in how much memory a model trains."""

import resource
import sys
import time

import numpy as np

from keras_efficient.flavor import Callback
from keras_efficient.training import _example_counter as example_counter

#: Steps left out of the rates: they trace and compile the graph.
WARM_UP_STEPS = 2


class Throughput(Callback):
    """Examples and real tokens per second, step times and peak memory of a `fit`.

    Counts what the model is given, in the training graph, so it works with any data: examples are
    the first dimension of the batch; tokens are the ones of its mask ("padding_mask",
    "attention_mask", "input_mask"), padding not counted. Adds `examples_per_second` and
    `tokens_per_second` of the epoch to the epoch's logs.

    The first two steps of a `fit`, which trace the graph, are in no rate; `first_step_seconds`
    tells what they cost.

    Attributes, after training:
        examples, tokens: int, seen by the rated steps; tokens is None for a batch without mask.
        padding_share: float, 1 - tokens / positions; None without mask.
        examples_per_second, tokens_per_second: float or None, over the rated steps.
        step_seconds: dict of "p50", "p95", "max", in seconds.
        first_step_seconds: float, the time of the steps left out.
        peak_memory_bytes: int, of the process (resident set) or, with GPUs, of the fullest GPU.

    Example:
        >>> speed = ke.callbacks.Throughput()
        >>> model.fit(dataset, callbacks=[speed])
        >>> print(speed)
    """

    def __init__(self):
        self._steps = []

    def set_model(self, model):
        if model is not self.model:
            self.model = model
            self._counts = example_counter.attach(model)
        self._steps = []

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = len(self._steps)

    def on_train_batch_begin(self, batch, logs=None):
        self._started = time.perf_counter()
        self._before = self._counts.read()

    def on_train_batch_end(self, batch, logs=None):
        seconds = time.perf_counter() - self._started
        self._steps.append((seconds, *(self._counts.read() - self._before)))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            rates = _rates(self._steps[max(self._epoch, WARM_UP_STEPS) :])
            logs.update({name: rate for name, rate in rates.items() if rate is not None})

    def on_train_end(self, logs=None):
        example_counter.detach(self.model, self._counts)
        self.model = None

    @property
    def last_step(self):
        """`examples_per_second` and `tokens_per_second` of the step just made."""
        return _rates(self._steps[-1:])

    @property
    def _rated(self):
        return self._steps[WARM_UP_STEPS:]

    @property
    def examples(self):
        return int(sum(step[1] for step in self._rated))

    @property
    def tokens(self):
        return int(sum(step[2] for step in self._rated)) if self._masked else None

    @property
    def padding_share(self):
        if not self._masked:
            return None
        return 1.0 - sum(s[2] for s in self._steps) / sum(s[3] for s in self._steps)

    @property
    def _masked(self):
        return any(step[3] for step in self._steps)

    @property
    def examples_per_second(self):
        return _rates(self._rated)["examples_per_second"]

    @property
    def tokens_per_second(self):
        return _rates(self._rated)["tokens_per_second"]

    @property
    def step_seconds(self):
        seconds = [step[0] for step in self._rated]
        if not seconds:
            return {}
        p50, p95 = np.percentile(seconds, [50, 95])
        return {"p50": float(p50), "p95": float(p95), "max": max(seconds)}

    @property
    def first_step_seconds(self):
        return sum(step[0] for step in self._steps[:WARM_UP_STEPS])

    @property
    def peak_memory_bytes(self):
        return peak_memory_bytes()

    def __str__(self):
        parts = [
            f"{self.examples_per_second:.1f} examples/s" if self.examples_per_second else None,
            f"{self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second else None,
            f"{self.padding_share:.1%} padding" if self._masked else None,
            f"{self.peak_memory_bytes / 1e9:.2f} GB at most",
        ]
        return ", ".join(part for part in parts if part)


def peak_memory_bytes():
    """The most memory in use so far, in bytes: of the fullest GPU, else of this process."""
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus)
    # Linux counts in kibibytes, macOS in bytes.
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
