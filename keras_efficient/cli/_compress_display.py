"""The plan of `compress`, printed before it starts."""

import shutil

from rich.markup import escape
from rich.table import Table

from keras_efficient.cli._printable import printable


def show_plan(console, plan, info, output) -> None:
    """Print what a run will do, with the estimated minutes of each phase.

    Args:
        console: the `rich.console.Console` to print on.
        plan: a `CompressPlan`.
        info: the `TrainedModelInfo` of the model.
        output: path of the run's folder.
    """
    free = shutil.disk_usage(next(p for p in (output, *output.parents) if p.exists())).free
    rows = {"model": f"{info.directory} ({info.library})"} | plan.rows
    rows["output"] = f"{output} ({free / 1e9:.0f} GB free)"
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", escape(printable(value)))
    console.print(table)
    times = Table.grid(padding=(0, 2))
    times.add_column()
    times.add_column(justify="right")
    for name, minutes in plan.minutes.items():
        times.add_row(f"  {name}", _minutes(minutes))
    times.add_row("[bold]  about", f"[bold]{_minutes(plan.total_minutes)}")
    console.print("[bold]estimated time")
    console.print(times)


def _minutes(minutes):
    if minutes >= 90:
        return f"{minutes / 60:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 9.5 else f"{minutes:.1f} min"
