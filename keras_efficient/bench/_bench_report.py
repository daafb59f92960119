"""What `bench` measured: a table, JSON and a plot."""

import dataclasses
import json
from dataclasses import dataclass

from keras_efficient._errors import InputError


@dataclass(frozen=True)
class BenchReport:
    """Latencies of exported models, side by side.

    Attributes:
        threads: int, threads of one operation.
        targets: {name: {"path", "kind", "bytes", "accuracy" (or None), "cases"}}, where "cases" is
            {"batch B, length N": {"median_ms", "p95_ms", "examples_per_second", "calls"}}; the
            throughput is that of the median.

    Example:
        >>> from keras_efficient.bench._bench_report import BenchReport
        >>> case = {"median_ms": 4.0, "p95_ms": 5.0, "examples_per_second": 250.0, "calls": 9}
        >>> half = {**case, "median_ms": 2.0, "examples_per_second": 500.0}
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

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def speedup(self, baseline) -> dict:
        """{target: {case: how many times as fast as `baseline` by the median}}.

        Raises:
            InputError: no target of that name.
        """
        if baseline not in self.targets:
            raise InputError(
                f"`baseline` must be one of {', '.join(self.targets)}. Received: {baseline!r}."
            )
        own = self.targets[baseline]["cases"]
        return {
            name: {c: own[c]["median_ms"] / f["median_ms"] for c, f in target["cases"].items()}
            for name, target in self.targets.items()
        }

    def table(self):
        """A `rich.table.Table`: a section for each case, a row for each target."""
        from rich.table import Table
        from rich.text import Text

        first = next(iter(self.targets))
        ratios = self.speedup(first)
        counts = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        table = Table(title=f"Latency on this machine's CPU, {counts}", title_justify="left")
        table.add_column("")
        table.add_column("", overflow="fold")
        right = ("median ms", "p95 ms", "examples/s", "faster", "MB", "accuracy")
        for name in right:
            table.add_column(name, justify="right", no_wrap=True)
        for case in self.targets[first]["cases"]:
            for name, target in self.targets.items():
                figures, accuracy = target["cases"][case], target["accuracy"]
                table.add_row(
                    case if name == first else "",
                    # Text: what looks like markup in a name is not markup.
                    Text(name),
                    f"{figures['median_ms']:.2f}",
                    f"{figures['p95_ms']:.2f}",
                    f"{figures['examples_per_second']:,.1f}",
                    f"{ratios[name][case]:.2f}x",
                    f"{target['bytes'] / 1e6:,.2f}",
                    "" if accuracy is None else f"{accuracy:.2%}",
                )
            table.add_section()
        return table

    def plot(self, path):
        """Draw the latencies into an image file: a panel for each case, a bar for each target.

        Bars end at the median, whiskers at the 95th percentile.

        Raises:
            InputError: the file cannot be written, or its suffix is of no image.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

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
            layout="constrained",
        )
        figure.get_layout_engine().set(h_pad=0.1)
        shades = pyplot.get_cmap("tab10").colors
        colours = [shades[i % len(shades)] for i in range(len(names))]
        for axis in axes.flat[len(cases) :]:
            axis.set_visible(False)
        for axis, case in zip(axes.flat, cases, strict=False):
            figures = [self.targets[name]["cases"][case] for name in names]
            medians = [f["median_ms"] for f in figures]
            # (Of few calls the percentile is between two.)
            above = [max(0.0, f["p95_ms"] - f["median_ms"]) for f in figures]
            error = [[0.0] * len(names), above]
            whiskers = {"ecolor": "0.35", "elinewidth": 1, "capsize": 2}
            axis.barh(names, medians, xerr=error, color=colours, height=0.7, error_kw=whiskers)
            for place, (median, more) in enumerate(zip(medians, above, strict=True)):
                axis.annotate(
                    f"{median:.3g}",
                    (median + more, place),
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
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise InputError(
                "A plot goes into an image file, such as bench.png, in a folder that exists. "
                f"Received: {str(path)!r} ({error})."
            ) from error
        finally:
            pyplot.close(figure)
