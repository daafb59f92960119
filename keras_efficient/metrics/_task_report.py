"""`TaskReport`: what the evaluation reports of all tasks have in common."""

import dataclasses
import io
from typing import Any, ClassVar

from keras_efficient.metrics._report_tables import class_table


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """Quality of a model on labelled examples; prints as tables.

    Reports of tasks are dataclasses that derive from it.

    Attributes:
        examples: int, number of examples.
        interval: tuple of the lower and the upper bound of the 95% confidence interval of `score`,
            for other examples from the same source.
        warnings: tuple of str, what makes the score misleading.
        metric: str, name of the main score. A class attribute.
    """

    examples: int
    interval: tuple[float, float]
    warnings: tuple[str, ...]
    metric: ClassVar[str] = "score"

    @property
    def score(self) -> float:
        """Return the main score, of which more is better."""
        raise NotImplementedError

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        raise NotImplementedError

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display: scores with their interval and baseline."""
        raise NotImplementedError

    def tables(self) -> list[tuple[str, Any]]:
        """Return `(title, rich table)` pairs: the scores per class, if there are any."""
        classes = getattr(self, "classes", ())
        return [class_table(classes)] if classes else []

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return dataclasses.asdict(self)

    def __rich__(self):
        from rich.console import Group
        from rich.text import Text

        lines: list[Any] = [Text(f"Evaluation on {self.examples:,} examples", style="bold")]
        lines += [Text(f"  {label}: {value}") for label, value in self.rows()]
        for title, table in self.tables():
            # Not the table's title, which would be wrapped to its width.
            lines += [Text(""), Text(title, style="italic"), table]
        lines += [Text(f"Warning: {text}", style="bold yellow") for text in self.warnings]
        return Group(*lines)

    def __str__(self):
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=80, color_system=None).print(self)
        return file.getvalue().rstrip("\n")
