"""`BenchReport`: the measurements of `bench` as a table, JSON and a plot."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.bench._save_figure import save_figure

_DURATIONS = ("median_ms", "p95_ms", "processor_ms")


@dataclass(frozen=True)
class BenchReport:
    """Latency, throughput, size and accuracy of exported models, side by side.

    Attributes:
        threads: int, threads within one operation.
        targets: {name: facts}, where facts are "path"; "kind" ("saved_model", "litert", "onnx" or
            "openvino"); "bytes", the size of the files that a server loads; "accuracy" from 0 to 1,
            or None; "evaluation", the dict of a `ke.metrics.ClassificationReport`, or None; and
            "cases", which is {"batch B, length N": figures}. Figures are the latencies "median_ms"
            and "p95_ms" in milliseconds, "processor_ms", the median processor time of all threads
            of the target's process, "examples_per_second" at the median latency, and "calls", the
            number of calls timed.
        cpu: str, the CPU on which they were measured, with its number of cores and instruction
            sets.

    Examples:
        >>> from keras_efficient.bench import BenchReport
        >>> case = {"median_ms": 4.0, "p95_ms": 5.0, "processor_ms": 4.0, "calls": 9}
        >>> half = {**case, "median_ms": 2.0}
        >>> facts = {"path": "a", "kind": "saved_model", "bytes": 1, "accuracy": None}
        >>> report = BenchReport(1, {
        ...     "fp32": {**facts, "cases": {"batch 1, length 8": case}},
        ...     "int8": {**facts, "cases": {"batch 1, length 8": half}},
        ... })
        >>> report.speedup("fp32")["int8"]
        {'batch 1, length 8': 2.0}
    """

    threads: int
    targets: dict
    cpu: str = ""

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def speedup(self, baseline: str, figure: str = "median_ms") -> dict[str, dict[str, float]]:
        """Compute how many times as fast as `baseline` each target is.

        Args:
            baseline: str, the name of a target.
            figure: "median_ms", the latency, "p95_ms", or "processor_ms", the processor time, which
                depends less on other load of the machine. Default: "median_ms".

        Returns:
            {target: {case: ratio}}.

        Raises:
            InputError: there is no target of that name, or no such figure.
        """
        if baseline not in self.targets:
            raise InputError(
                f"`baseline` must be one of {', '.join(self.targets)}. Received: {baseline!r}."
            )
        if figure not in _DURATIONS:
            raise InputError(
                f"`figure` must be one of {', '.join(_DURATIONS)}. Received: {figure!r}."
            )
        base = self.targets[baseline]["cases"]
        return {
            name: {c: base[c][figure] / f[figure] for c, f in target["cases"].items()}
            for name, target in self.targets.items()
        }

    def table(self) -> Any:
        """Return a rich renderable for 80 columns: latencies by case, and the models.

        The latencies have a section for each case and a row for each target: "p50" is the median,
        "p95" the 95th percentile, and "CPU" the median processor time of all threads. A second
        table has size, accuracy and macro-F1, the majority baseline, and warnings of useless
        predictions.
        """
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        first = next(iter(self.targets))
        ratios = self.speedup(first)
        shown = _without_common_folder(list(self.targets))
        counts = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        table = Table(
            title=f"Latency on {self.cpu or 'the CPU'}; {counts}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("", overflow="fold")
        for name in ("p50 ms", "p95 ms", "CPU ms", "examples/s", "faster"):
            table.add_column(name, justify="right", no_wrap=True)
        for case in self.targets[first]["cases"]:
            table.add_row(Text(case, style="bold"))
            for name, target in self.targets.items():
                figures = target["cases"][case]
                table.add_row(
                    # Text does not interpret markup in a name.
                    Text(f"  {shown[name]}"),
                    *map(_milliseconds, (figures[name] for name in _DURATIONS)),
                    f"{figures['examples_per_second']:,.1f}",
                    f"{ratios[name][case]:.2f}x",
                )
            table.add_section()
        return Group(table, *self._models(shown))

    def _models(self, shown):
        from rich import box
        from rich.table import Table
        from rich.text import Text

        reports = {name: target.get("evaluation") for name, target in self.targets.items()}
        measured = [target["accuracy"] is not None for target in self.targets.values()]
        columns = ["MB", *(["accuracy", "macro-F1"] if any(measured) else [])]
        table = Table(title="Models", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("", overflow="fold")
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for name, target in self.targets.items():
            accuracy, report = target["accuracy"], reports[name]
            scores = ["" if accuracy is None else f"{accuracy:.2%}"]
            scores.append("" if report is None else f"{report['macro_f1']:.4f}")
            cells = [f"{target['bytes'] / 1e6:,.2f}", *scores]
            table.add_row(Text(shown[name]), *cells[: len(columns)])
        yield table
        found = [report for report in reports.values() if report is not None]
        if found:
            yield Text(
                f"Majority baseline on the {found[0]['examples']:,} examples: "
                f"{found[0]['majority_baseline']:.2%}"
            )
        for name, report in reports.items():
            for warning in () if report is None else report["warnings"]:
                yield Text(f"Warning, {shown[name]}: {warning}", style="bold yellow")

    def plot(self, path: str | os.PathLike) -> None:
        """Draw the latencies into an image file, with a panel for each case.

        Each target has a bar, which ends at the median, and a whisker, which ends at the 95th
        percentile.

        Args:
            path: path of the file; its suffix, such as .png or .svg, chooses the format.

        Raises:
            InputError: the file cannot be written, or its suffix is not that of an image.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        names = list(self.targets)
        cases = list(self.targets[names[0]]["cases"])
        columns = min(3, len(cases))
        rows = -(-len(cases) // columns)
        figure, axes = pyplot.subplots(
            rows,
            columns,
            figsize=(1.6 + 3.4 * columns, 0.7 + rows * (0.75 + 0.3 * len(names))),
            sharey=True,
            squeeze=False,
            layout=ConstrainedLayoutEngine(h_pad=0.1),
        )
        palette = pyplot.get_cmap("tab10")
        colours = [palette(i % palette.N) for i in range(len(names))]
        for axis in axes.flat[len(cases) :]:
            axis.set_visible(False)
        for axis, case in zip(axes.flat, cases, strict=False):
            figures = [self.targets[name]["cases"][case] for name in names]
            medians = [f["median_ms"] for f in figures]
            # With few calls the interpolated percentile can lie below the median.
            above = [max(0.0, f["p95_ms"] - f["median_ms"]) for f in figures]
            error = [[0.0] * len(names), above]
            whiskers = {"ecolor": "0.35", "elinewidth": 1, "capsize": 2}
            axis.barh(names, medians, xerr=error, color=colours, height=0.7, error_kw=whiskers)
            for row, (median, more) in enumerate(zip(medians, above, strict=True)):
                axis.annotate(
                    f"{median:.3g}",
                    (median + more, row),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
            axis.set_title(case, fontsize=10)
            axis.set_xlim(0, 1.18 * max(m + a for m, a in zip(medians, above, strict=True)))
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(axis="y", length=0)
            axis.tick_params(labelsize=8)
        # The first target at the top; the axis is shared.
        axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
        figure.supxlabel("ms for one call: median, and 95th percentile", fontsize=9)
        save_figure(figure, path)


def latency_of(target: Mapping[str, Any], threads: int) -> float:
    """Return the milliseconds of a target of a `BenchReport` with a single case.

    With one thread it is the processor time: the thread is busy from the beginning to the end of a
    call, and other processes may delay it.
    """
    (case,) = target["cases"].values()
    return case["processor_ms" if threads == 1 else "median_ms"]


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _without_common_folder(names: list[str]) -> dict[str, str]:
    """Return each name without the folders that all of them begin with."""
    folders = [os.path.dirname(name) for name in names]
    try:
        common = os.path.commonpath(folders) if len(names) > 1 else ""
    except ValueError:  # Absolute and relative ones.
        common = ""
    return {name: os.path.relpath(name, common) if common else name for name in names}
