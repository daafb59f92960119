"""Sparsity patterns of a matrix: unstructured, N:M and blocks."""

import re
from dataclasses import dataclass

from keras_efficient.architecture._weights import Weight


@dataclass(frozen=True)
class Pattern:
    """The groups of a matrix [inputs, outputs] that are pruned together.

    Attributes:
        text: the pattern as the caller wrote it.
        kept: numbers kept of every `group` consecutive inputs of an output; 0 without groups.
        group: size of such a group, or None.
        block: shape (inputs, outputs) of the blocks that are kept or pruned as a whole.
    """

    text: str
    kept: int = 0
    group: int | None = None
    block: tuple[int, int] = (1, 1)

    @property
    def sparsity(self) -> float | None:
        """The sparsity that an N:M pattern implies, or None."""
        return None if self.group is None else 1 - self.kept / self.group

    def check(self, weight: Weight) -> None:
        """Raise a ValueError if the weight's sides are not multiples of the groups or blocks."""
        inputs, outputs = weight.matrix_shape
        if self.group is not None and inputs % self.group:
            rule, size = f"whole groups of {self.group} inputs", f"{inputs} inputs"
        elif inputs % self.block[0] or outputs % self.block[1]:
            rule, size = f"whole blocks of {self.block[0]}x{self.block[1]}", f"{inputs}x{outputs}"
        else:
            return
        raise ValueError(
            f"The pattern {self.text!r} needs {rule} in a matrix [inputs, outputs]. Received: "
            f"{weight.path!r} with {size}. Leave it out with `layers=`, or choose another pattern."
        )


def pattern_of(text: str) -> Pattern:
    """Parse "unstructured", "2:4" (2 kept of 4) or "block:1x4".

    Raises:
        ValueError: it is none of these.
    """
    if text == "unstructured":
        return Pattern(text)
    if match := re.fullmatch(r"(\d+):(\d+)", str(text)):
        kept, group = map(int, match.groups())
        if 0 < kept < group:
            return Pattern(text, kept, group)
    if match := re.fullmatch(r"block:(\d+)x(\d+)", str(text)):
        inputs, outputs = map(int, match.groups())
        if min(inputs, outputs) > 0 and max(inputs, outputs) > 1:
            return Pattern(text, block=(inputs, outputs))
    raise ValueError(
        "`pattern` must be 'unstructured', 'N:M' with N < M (N kept of every M inputs, as '2:4'), "
        f"or 'block:IxO' (inputs x outputs, as 'block:1x4'). Received: {text!r}."
    )
