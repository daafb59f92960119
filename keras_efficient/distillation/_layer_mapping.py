"""Which Transformer block of a teacher each block of a student learns from."""

from collections.abc import Mapping
from typing import Any

MAPPINGS = ("uniform", "last")


def check_layers(layers: Any) -> None:
    """Require a value that `map_layers` takes.

    Raises:
        ValueError: it is another value.
    """
    named = isinstance(layers, str) and layers in MAPPINGS
    pairs = list(layers.items()) if isinstance(layers, Mapping) else []
    numbers = bool(pairs) and all(type(n) is int for pair in pairs for n in pair)
    if not named and not numbers:
        raise ValueError(
            "`layers` must be 'uniform', 'last', or a dict from the index of a block of the "
            f"student to that of one of the teacher, such as {{0: 1, 1: 3, 2: 5}}. Received: "
            f"{layers!r}."
        )


def map_layers(layers: Any, student: int, teacher: int) -> list[tuple[int, int]]:
    """Return pairs of the indices of a student's and a teacher's block.

    Args:
        layers: "uniform": block i of the student learns from the block of the teacher as far up,
            so that 3 blocks learn from the second, fourth and sixth of 6. "last": only the last
            block of the student learns, from the last one of the teacher. Or a dict of indices,
            which count from the end if they are negative.
        student: number of blocks of the student.
        teacher: number of blocks of the teacher.

    Raises:
        ValueError: an index is out of range, or a student is deeper than a teacher and `layers` is
            "uniform".
    """
    if layers == "last":
        return [(student - 1, teacher - 1)]
    if layers == "uniform":
        if student > teacher:
            raise ValueError(
                "With layers='uniform', the teacher must have at least as many blocks as the "
                f"student. Received: {student} blocks in the student and {teacher} in the "
                "teacher. Give `layers` as a dict, or 'last'."
            )
        # Rounded up, so that the last learns from the last.
        return [(i, -(-(i + 1) * teacher // student) - 1) for i in range(student)]
    pairs = [
        (_index(s, student, "student"), _index(t, teacher, "teacher")) for s, t in layers.items()
    ]
    return sorted(pairs)


def _index(index, number, who):
    if not -number <= index < number:
        raise ValueError(
            f"`layers` must name blocks that exist. Received: block {index} of the {who}, which "
            f"has {number}. The first one is 0."
        )
    return index % number
