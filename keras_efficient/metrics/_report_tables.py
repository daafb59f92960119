"""Tables of evaluation reports for the terminal: scores per class, and names made printable."""

from typing import Any

#: Classes in the terminal's table of scores.
_ROWS = 20
_NAME = 24


def class_table(classes: tuple[dict[str, Any], ...]) -> tuple[str, Any]:
    """Return the title and the rich table of the scores per class, lowest F1 first if cut."""
    shown = worst_classes(classes, _ROWS)
    title = "Per class"
    if len(shown) < len(classes):
        title += f" ({len(shown)} of {len(classes):,}, lowest F1 first)"
    found = score_table(["class"], ["precision", "recall", "F1", "examples", "predicted"])
    for entry in shown:
        scores = (f"{entry[name]:.3f}" for name in ("precision", "recall", "f1"))
        counts = (count_cell(entry[name]) for name in ("examples", "predicted"))
        found.add_row(name_cell(entry["label"]), *scores, *counts)
    return title, found


def worst_classes(classes: tuple[dict[str, Any], ...], most: int) -> list[dict[str, Any]]:
    """Return all classes if they are at most `most`, else those of lowest F1 that occur."""
    if len(classes) <= most:
        return list(classes)
    occurring = [c for c in classes if c["examples"] or c["predicted"]]
    return sorted(occurring, key=lambda c: (c["f1"], -c["examples"]))[:most]


def score_table(left: list[str], right: list[str], width: int | None = None) -> Any:
    """Return an empty rich table with columns of names, `left`, and of numbers, `right`."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in left:
        # Folded, since long names may differ at their ends only.
        found.add_column(name, max_width=_NAME, overflow="fold")
    for name in right:
        options: dict[str, Any] = {"overflow": "ellipsis", "no_wrap": True, "max_width": width}
        found.add_column(name_cell(name), justify="right", **options)
    return found


def name_cell(name: str) -> Any:
    """Return a name as rich text, without control characters."""
    from rich.text import Text

    # Text does not interpret markup in a name; control characters would reach the terminal.
    return Text("".join(c if c.isprintable() else "�" for c in name))


def short(name: str) -> str:
    """Return a name, cut to the width of a column."""
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def count_cell(value: float) -> str:
    """Return a number of examples, or a sum of their weights."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
