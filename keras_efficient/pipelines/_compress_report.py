"""`CompressReport`: every candidate that was tried, which one to take, as table and plot."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficient.bench import BenchReport
from keras_efficient.bench._bench_report import latency_of
from keras_efficient.bench._save_figure import save_figure
from keras_efficient.pipelines._compress_settings import CompressSettings
from keras_efficient.pipelines._target import Target

#: Names of the two exports of the model as it is.
KERAS, INT8 = "Keras float32", "whole, int8"


#: Scores that are shares of the examples.
_SHARES = ("accuracy",)


def shown(metric: str, score: float) -> str:
    """Return a score as text, in percent if it is a share of the examples."""
    return f"{score:.1%}" if metric in _SHARES else f"{score:.3f}"


@dataclass(frozen=True)
class CompressReport:
    """The result of `compress`; prints as a table.

    Attributes:
        directory: str, the folder of the run.
        target: str, such as "speedup=10".
        metric: str, name of the score, such as "accuracy", of which more is better.
        standard_error: of the model's score, for other texts from the same source.
        max_drop: share of the model's score that may be lost.
        examples: number of texts on which scores were measured.
        train: number of labelled texts for training.
        unlabelled: number of texts that only the teacher labelled.
        case: str, batch and length for which latencies were measured.
        threads: number of threads of an operation.
        cpu: str, the CPU on which they were measured.
        rows: tuple of dicts, Keras' float32 export of the model first, then its int8 export and the
            candidates. Each has "name"; "score" as it is served; "latency_ms", with one thread
            the processor time of a call, otherwise the time that passes, whose median and 95th
            percentile are "median_ms" and "p95_ms"; "speedup" relative to the first row; "bytes" of
            the files that a server loads; "bytes_ratio", how many times fewer than those of the
            first row; "parameters"; "directory" of the export; "reaches", whether it reaches the
            target; and "keeps", whether it keeps the score.
            Candidates have also "score_float", "layers" and "sizes".
        recommended: str, the name of a row: of those that reach the target and keep the score,
            the fastest, or for a target of parameters or bytes the smallest. None if there is none.
        refused: dict of a target's label to the reason why there is no candidate for it.
        seconds: dict of a phase to the seconds it took, if it ran in this process.
    """

    directory: str
    target: str
    metric: str
    standard_error: float
    max_drop: float
    examples: int
    train: int
    unlabelled: int
    case: str
    threads: int
    cpu: str
    rows: tuple[dict[str, Any], ...]
    recommended: str | None
    refused: dict[str, str]
    seconds: dict[str, float]

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of a name."""
        return next(row for row in self.rows if row["name"] == name)

    def front(self) -> list[str]:
        """Return the names of the rows that no other one beats in score, latency and bytes."""
        return [r["name"] for r in self.rows if not any(_beats(o, r) for o in self.rows)]

    def verdict(self) -> str:
        """Return which candidate to take, or that there is none and what comes closest."""
        kept = f"{100 * (1 - self.max_drop):.4g}% of the model's {self.metric}"
        if self.recommended is not None:
            row = self.row(self.recommended)
            return (
                f"Recommended: {row['name']}, {row['speedup']:.1f} times as fast and "
                f"{row['bytes_ratio']:.1f} times smaller than Keras' float32 export, with "
                f"{self._shown(row)} instead of {self._shown(self.rows[0])} {self.metric}."
            )
        lines = [f"No candidate reaches {self.target} with at least {kept}."]
        keeping = [row for row in self.rows if row["keeps"]]
        reaching = [row for row in self.rows if row["reaches"]]
        small = Target.of(self.target).name in ("parameters", "bytes")
        if keeping:
            best = min(keeping, key=lambda r: r["bytes" if small else "latency_ms"])
            lines.append(f"With that {self.metric} the best is {self._figures(best)}.")
        if reaching:
            best = max(reaching, key=lambda r: r["score"])
            lines.append(f"At the target the best is {self._figures(best)}.")
        lines.append("More epochs or more --unlabelled texts may help.")
        return " ".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return dataclasses.asdict(self) | {"front": self.front(), "verdict": self.verdict()}

    def _name(self):
        return self.metric[0].upper() + self.metric[1:]

    def _shown(self, row):
        return shown(self.metric, row["score"])

    def _figures(self, row):
        return (
            f"{row['name']} ({row['speedup']:.1f} times as fast, {row['bytes'] / 1e6:.1f} MB, "
            f"{self._shown(row)})"
        )

    def __rich__(self):
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # For 80 columns.
        style = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
        table = Table(title="Result", title_justify="left", collapse_padding=True, **style)
        table.add_column("", no_wrap=True)
        names = (self.metric, "kept", "ms", "faster", "MB", "smaller", "params")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        whole, front = self.rows[0]["score"], self.front()
        for row in self.rows:
            best = row["name"] == self.recommended
            mark = "▶ " if best else "  "
            table.add_row(
                Text(f"{mark}{row['name']}{' *' * (row['name'] in front)}"),
                self._shown(row),
                Text(f"{row['score'] / whole:.1%}", "" if row["keeps"] else "red"),
                f"{row['latency_ms']:.2f}",
                Text(f"{row['speedup']:.1f}x"),
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['bytes_ratio']:.1f}x",
                f"{row['parameters'] / 1e6:.2f}M",
                style="bold green" if best else "",
            )
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        lines = [
            Text(""),
            Text(
                f"Latency of {self.case}, {threads}, on {self.cpu}. {self._name()} on "
                f"{self.examples:,} texts, with a standard error of "
                f"{shown(self.metric, self.standard_error)}. *: no other is at least as good in "
                f"{self.metric}, latency and bytes.",
                style="dim",
            ),
        ]
        for name, reason in self.refused.items():
            lines.append(Text(f"No candidate for {name}: {reason}", style="yellow"))
        style = "bold green" if self.recommended else "bold yellow"
        return Group(table, *lines, Text(""), Text(self.verdict(), style=style))

    def __str__(self):
        import io

        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=80, color_system=None).print(self)
        return file.getvalue().rstrip("\n")

    def plot(self, path: str | os.PathLike) -> None:
        """Draw the score against latency and against bytes, with the Pareto front of each.

        Args:
            path: path of the image file; its suffix chooses the format.

        Raises:
            InputError: the file cannot be written.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
        target = Target.of(self.target)
        for axis, name, label in (
            (axes[0], "latency_ms", f"latency of {self.case}, ms"),
            (axes[1], "bytes", "files that a server loads, MB"),
        ):
            self._draw(axis, name, 1e-6 if name == "bytes" else 1.0, target)
            axis.set_xlabel(label)
        axes[0].set_ylabel(f"{self.metric} on {self.examples:,} texts")
        handles, labels = axes[0].get_legend_handles_labels()
        below = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
        figure.legend(handles, labels, ncols=len(labels), **below)
        figure.suptitle(f"Candidates for {self.target}, on {self.cpu}", fontsize=10)
        save_figure(figure, path)

    def _draw(self, axis, name, unit, target):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

        whole = self.rows[0]["score"]
        points = [(row[name] * unit, row["score"], row["name"]) for row in self.rows]
        limit = target.value * unit if target.name == name else None
        if target.name == "speedup" and name == "latency_ms":
            limit = self.rows[0][name] / target.value
        floor = whole * (1 - self.max_drop)
        kept = f"{100 * (1 - self.max_drop):.4g}% of the model's {self.metric}"
        axis.axhline(floor, color="0.6", linestyle=":", linewidth=1, label=kept)
        if limit is not None:
            axis.axvline(limit, color="0.6", linestyle="--", linewidth=1, label=str(target))
        front = list(zip(*_pareto(points), strict=True))
        style = {"linewidth": 1, "drawstyle": "steps-post", "zorder": 1}
        axis.plot(*front, color="C0", label="Pareto front", **style)
        groups = (
            ("the model as it is", "s", "0.35", [p for p in points if p[2] in (KERAS, INT8)]),
            (
                "candidates",
                "o",
                "C0",
                [p for p in points if p[2] not in (KERAS, INT8, self.recommended)],
            ),
            ("recommended", "*", "C2", [p for p in points if p[2] == self.recommended]),
        )
        for label, marker, colour, members in groups:
            if members:
                axis.scatter(
                    [p[0] for p in members],
                    [p[1] for p in members],
                    s=130 if marker == "*" else 40,
                    marker=marker,
                    color=colour,
                    label=label,
                    zorder=2,
                )
        for x, y, text in points:
            axis.annotate(text, (x, y), (0, 8), textcoords="offset points", ha="center", fontsize=8)
        axis.set_xscale("log")
        axis.margins(0.16)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=8)
        if self.metric in _SHARES:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.spines[["top", "right"]].set_visible(False)


def compress_report(
    directory: Path,
    settings: CompressSettings,
    teacher: Mapping[str, Any],
    times: BenchReport,
    candidates: Mapping[str, Mapping[str, Any]],
    refused: Mapping[str, str],
    *,
    seconds: Mapping[str, float],
    train: int,
    unlabelled: int,
) -> CompressReport:
    """Make the report of a run.

    Args:
        directory: folder of the run.
        settings: its settings.
        teacher: what was found out about the model as it is.
        times: `BenchReport` of "keras", "int8" and each candidate.
        candidates: facts of each candidate, by its name.
        refused: reasons by the labels of targets without a candidate.
        seconds: seconds of the phases.
        train: number of labelled training texts.
        unlabelled: number of other training texts.
    """
    base = directory / "teacher"
    given: dict[str, dict[str, Any]] = {
        "keras": {
            "name": KERAS,
            "score": teacher["score"],
            "parameters": teacher["parameters"],
            "directory": str(base / "keras"),
        },
        "int8": {
            "name": INT8,
            "score": teacher["score_int8"],
            "parameters": teacher["parameters"],
            "directory": str(base / "int8" / "1"),
        },
        **{name: {"name": name, **facts} for name, facts in candidates.items()},
    }
    (case,) = times.targets["keras"]["cases"]
    first = times.targets["keras"]
    rows = []
    for key, row in given.items():
        measured = times.targets[key]
        latency = latency_of(measured, settings.threads)
        row |= {
            "latency_ms": latency,
            "median_ms": measured["cases"][case]["median_ms"],
            "p95_ms": measured["cases"][case]["p95_ms"],
            "speedup": latency_of(first, settings.threads) / latency,
            "bytes": measured["bytes"],
            "bytes_ratio": first["bytes"] / measured["bytes"],
        }
        row["reaches"] = settings.target.reached(row)
        row["keeps"] = row["score"] >= (1 - settings.max_drop) * teacher["score"] - 1e-9
        rows.append(row)
    by = "bytes" if settings.target.name in ("parameters", "bytes") else "latency_ms"
    good = [row for row in rows if row["reaches"] and row["keeps"]]
    return CompressReport(
        directory=str(directory),
        target=str(settings.target),
        metric=teacher["metric"],
        # A confidence interval of 95% is about four standard errors wide.
        standard_error=(teacher["interval"][1] - teacher["interval"][0]) / (2 * 1.96),
        max_drop=settings.max_drop,
        examples=teacher["evaluation"]["examples"],
        train=train,
        unlabelled=unlabelled,
        case=f"{settings.batch} texts of {settings.length} tokens",
        threads=settings.threads,
        cpu=times.cpu,
        rows=tuple(rows),
        recommended=min(good, key=lambda row: row[by])["name"] if good else None,
        refused=dict(refused),
        seconds=dict(seconds),
    )


def _beats(one, other):
    """Whether a row is as good as another in everything, and better in something."""
    pairs = [(other[name], one[name]) for name in ("latency_ms", "bytes")]
    pairs.append((one["score"], other["score"]))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _pareto(points):
    """Return the points, from the smallest, that are better than all smaller ones."""
    front = []
    for x, y, _ in sorted(points):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front
