"""The patterns in which a matrix may be sparse."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Which groups of a matrix [inputs, outputs] are pruned together.

    Attributes:
        text: str, as given.
        kept: int or None: of every `group` consecutive inputs of an output, so many are kept.
        group: int or None.
        block: tuple (inputs, outputs), the shape of the blocks that are kept or pruned whole.
    """

    text: str
    kept: int | None = None
    group: int | None = None
    block: tuple = (1, 1)

    @property
    def sparsity(self):
        """The sparsity that the pattern fixes, or None."""
        return None if self.group is None else 1 - self.kept / self.group

    def check(self, weight):
        """Refuse a weight that the pattern does not divide."""
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


def pattern_of(text) -> Pattern:
    """ "unstructured", "2:4" (2 kept of 4) or "block:1x4" as a `Pattern`.

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
        block = tuple(map(int, match.groups()))
        if min(block) > 0 and max(block) > 1:
            return Pattern(text, block=block)
    raise ValueError(
        "`pattern` must be 'unstructured', 'N:M' with N < M (N kept of every M inputs, as '2:4'), "
        f"or 'block:IxO' (inputs x outputs, as 'block:1x4'). Received: {text!r}."
    )
