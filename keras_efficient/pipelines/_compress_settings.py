"""`CompressSettings`: the validated settings of `compress`."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.dtype_policies._mixed_precision import POLICIES
from keras_efficient.pipelines._target import Target

#: Settings that may change when a run goes on: with other targets, it tries more candidates.
_FREE = ("target", "max_drop", "front", "seconds")


@dataclass(frozen=True)
class CompressSettings:
    """How a model is compressed: the target, and how candidates are trained and measured.

    Args:
        target: "speedup=10" or {"speedup": 10}: "speedup", relative to Keras' own float32 export
            of the model, "latency_ms", "parameters", or "bytes", of the files that a server loads.
        max_drop: share of the model's score, such as the accuracy, that may be lost, from 0 to 1:
            0.01 keeps 99% of it. Default: 0.01.
        front: a candidate is made for each of these multiples of the target. Default: (0.5, 1, 2).
        batch: texts per call when latencies are measured. Default: 8.
        length: tokens per text when latencies are measured. Default: 64.
        threads: threads within one operation when latencies are measured. Default: 1.
        seconds: time for each model and measurement. Default: 2.0.
        copies: altered copies of each training text, made by `ke.data.augment_texts`, which only
            the teacher labels. Default: 4.
        epochs: passes over the texts for each candidate. Default: 3.
        batch_size: texts per update. Default: 32.
        learning_rate: peak rate, after a warm-up over a tenth of the updates. Default: 4e-4.
        alpha: weight of the loss of the labels, from 0 to 1; the rest is the teacher's. Default: 0.
        temperature: softens the predictions of teacher and student. Default: 2.0.
        divergence: distance of predictions, as for `ke.distill`. Default: "mse".
        max_length: texts are truncated to this many tokens. Default: 128.
        importance: how `ke.shrink` chooses neurons and heads. Default: "reconstruction".
        min_frequency: tokens that the texts have less often are removed from the vocabulary; 0
            keeps all. Default: 2.
        precision: as for `ke.mixed_precision`, in which candidates are trained. Default: "auto".
        seed: seed of the shuffling and dropout. Default: 0.

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> ke.pipelines.CompressSettings("speedup=10").target
        Target(name='speedup', value=10.0)
    """

    target: Any
    max_drop: float = 0.01
    front: tuple[float, ...] = (0.5, 1.0, 2.0)
    batch: int = 8
    length: int = 64
    threads: int = 1
    seconds: float = 2.0
    copies: int = 4
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 4e-4
    alpha: float = 0.0
    temperature: float = 2.0
    divergence: str = "mse"
    max_length: int = 128
    importance: str = "reconstruction"
    min_frequency: int = 2
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "target", Target.of(self.target))
        object.__setattr__(self, "front", tuple(sorted({*map(float, self.front), 1.0})))
        for name in ("batch", "length", "threads", "epochs", "batch_size", "max_length"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"`{name}` must be a whole number >= 1. Received: {value!r}.")
        for name in ("copies", "min_frequency"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InputError(f"`{name}` must be a whole number >= 0. Received: {value!r}.")
        for name in ("seconds", "learning_rate", "temperature"):
            if not _is_positive(getattr(self, name)):
                raise InputError(
                    f"`{name}` must be positive and finite. Received: {getattr(self, name)!r}."
                )
        for name in ("max_drop", "alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"`{name}` must be a number from 0 to 1. Received: {value!r}.")
        if not all(map(_is_positive, self.front)):
            raise InputError(
                f"`front` must hold positive multiples of the target. Received: {self.front!r}."
            )
        if self.divergence != CompressSettings.divergence:
            # Not at the top: it imports TensorFlow, and most mistakes are found before.
            from keras_efficient.distillation._soft_targets import check_divergence

            try:
                check_divergence(self.divergence)
            except ValueError as error:
                raise InputError(str(error)) from error
        if self.precision not in ("auto", *POLICIES):
            raise InputError(
                f"`precision` must be one of auto, {', '.join(POLICIES)}. Received: "
                f"{self.precision!r}."
            )
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise InputError(f"`seed` must be from 0 to {2**32 - 1}. Received: {self.seed!r}.")

    def identity(self) -> Mapping[str, Any]:
        """Return the settings that a run keeps when it goes on."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name not in _FREE}

    def targets(self) -> list[Target]:
        """Return the target of each candidate, from the easiest to the hardest."""
        return [self.target.harder(factor) for factor in self.front]


def _is_positive(value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf
