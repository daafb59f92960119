"""`Target`: how small or fast the compressed model is to be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_efficient._errors import InputError

_PREFIXES = ((1e6, "M"), (1e3, "k"), (1.0, ""))
NAMES = ("speedup", "latency_ms", "parameters", "bytes")


@dataclass(frozen=True)
class Target:
    """A number that the compressed model is to reach.

    Attributes:
        name: "speedup", relative to Keras' own float32 export of the model; "latency_ms";
            "parameters"; or "bytes", of the files that a server loads.
        value: the number.
    """

    name: str
    value: float

    @classmethod
    def of(cls, target: Any) -> "Target":
        """Return the target that "speedup=10" or {"speedup": 10} means.

        Raises:
            InputError: the name is unknown, or the value is no number in range.
        """
        if isinstance(target, Target):
            return target
        pairs = list(target.items()) if isinstance(target, Mapping) else [_pair(target)]
        if len(pairs) != 1 or pairs[0][0] not in NAMES:
            raise InputError(
                f"`target` must be one of {', '.join(f'{name}=NUMBER' for name in NAMES)}. "
                f"Received: {_shown(target)}. Give for example speedup=10."
            )
        name, value = pairs[0]
        try:
            value = float(value)
        except (TypeError, ValueError):
            value = math.nan
        least = 1 if name == "speedup" else 0
        if not least < value < math.inf:
            raise InputError(
                f"`target` must have a number above {least} for {name}. Received: "
                f"{_shown(target)}. Give for example {name}={_EXAMPLES[name]}."
            )
        return cls(name, value)

    def harder(self, factor: float) -> "Target":
        """Return the target that is so many times as hard to reach."""
        if self.name == "speedup":
            return Target(self.name, max(1.01, self.value * factor))
        return Target(self.name, self.value / factor)

    @property
    def label(self) -> str:
        """The target for tables: "10x" or "3.5 ms"."""
        if self.name == "speedup":
            return f"{self.value:.3g}x"
        if self.name == "latency_ms":
            return f"{self.value:.3g} ms"
        size, prefix = next(
            (size, prefix) for size, prefix in _PREFIXES if self.value >= size or not prefix
        )
        number = f"{self.value / size:.3g}"
        return f"{number} {prefix}B" if self.name == "bytes" else f"{number}{prefix} parameters"

    @property
    def folder(self) -> str:
        """A name for files: "speedup-10"."""
        return f"{self.name}-{self.value:.10g}"

    def reached(self, found: Mapping[str, Any]) -> bool:
        """Return whether measured figures, by the names of targets, reach it.

        The last 2% of a time are within the noise of a measurement.
        """
        if self.name == "speedup":
            return found["speedup"] >= 0.98 * self.value
        return found[self.name] <= self.value * (1.02 if self.name == "latency_ms" else 1)

    def __str__(self):
        return f"{self.name}={self.value:.10g}"


_EXAMPLES = {"speedup": "10", "latency_ms": "5", "parameters": "2e6", "bytes": "2e6"}


def _pair(target) -> tuple[Any, Any]:
    name, equals, value = str(target).partition("=")
    return (name.strip(), value.strip()) if equals else (None, None)


def _shown(target):
    if isinstance(target, Mapping):
        return ", ".join(f"{name}={value}" for name, value in target.items()) or "nothing"
    return repr(target)[:80]
