"""Plan, result table and report page of `finetune`."""

import shutil
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from keras_efficient.cli._printable import printable


@dataclass(frozen=True)
class Plan:
    """What a run will do, shown before it starts.

    Attributes:
        settings: the options.
        train: records to train on.
        validation: records to evaluate on.
        stats: `TextStats` of the training data.
        held_out: `TextStats` of the data to evaluate on.
        longest: int, most tokens that the model takes.
        blocks: str, what the model's Transformer blocks compute.
    """

    settings: Any
    train: Any
    validation: Any
    stats: Any
    held_out: Any
    longest: int
    blocks: str

    def rows(self) -> dict[str, str]:
        """Return what follows from the data and the options."""
        train, settings, stats = self.train, self.settings, self.stats
        labels, baseline = settings.definition.describe(train, self.validation)
        rows = {
            "data": f"{len(train)} to train on, {len(self.validation)} to evaluate on; {labels}",
            "baseline": baseline,
            "batches": f"{stats.batches} per epoch of {stats.batch_size}, {len(stats.shapes)} "
            f"shapes, {stats.padding_share:.1%} padding",
            "computed": self.blocks,
        }
        parts = (("to train on", stats), ("to evaluate on", self.held_out))
        cut = [f"{which}: {part.truncation}" for which, part in parts if part.truncated]
        if cut:
            more = f" (--max-length may be up to {self.longest})"
            rows["cut texts"] = "; ".join(cut) + more * (self.longest > settings.max_length)
        if settings.selection is not None:
            rows["weights"] = f"of the epoch with the best {self._selection()}"
            if settings.patience is not None:
                epochs = "1 epoch" if settings.patience == 1 else f"{settings.patience} epochs"
                rows["weights"] += f"; stops after {epochs} without a better one"
        if settings.quantize is not None:
            target = "" if settings.target is None else f" for CPUs with {settings.target.upper()}"
            rows["export"] = settings.quantize + target
        return rows

    def _selection(self):
        return self.settings.definition.choices[self.settings.selection][0]

    def show(self, console, precision, version, weight_bytes, class_weights) -> None:
        """Print the plan, with the model, the precision and the destination."""
        free = shutil.disk_usage(next(p for p in version.parents if p.exists())).free
        settings = self.settings
        rows = self.rows() | {
            "model": f"{settings.model} ({settings.library}), {weight_bytes / 1e6:.1f} MB of "
            "weights",
            "precision": str(precision),
            "output": f"{version} ({free / 1e9:.0f} GB free)",
        }
        if class_weights is not None:
            least, most = min(class_weights.values()), max(class_weights.values())
            rows["class weights"] = f"balanced, from {least:.3g} to {most:.3g}"
        table = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            table.add_row(f"[bold]{name}", escape(printable(value)))
        console.print(table)


def tiles(found, facts, stats, settings, precision):
    """Return the facts of the report page, with readable names and units."""
    return {
        **dict(found.rows()),
        "Examples per second": _number(facts["examples_per_second"], "{:.1f}"),
        "Tokens per second": _number(facts["tokens_per_second"], "{:.0f}"),
        "Padding share": stats.padding_share,
        "Peak memory": f"{facts['peak_memory_bytes'] / 1e9:.2f} GB",
        "Precision": precision.policy,
        "Batch size": settings.batch_size,
        "Epochs": settings.epochs,
        "Library": settings.library,
        "Model": settings.model,
        "Data": settings.data_name,
        "Learning rate": settings.learning_rate,
        "Microbatch size": settings.microbatch_size or "(the batch)",
        "Longest text (tokens)": settings.max_length,
        "Class weights": settings.class_weights or "(none)",
        "Weights of epoch": facts.get("best_epoch", "(the last)"),
        "Export": settings.quantize or "float32",
        "Seed": settings.seed,
    }


def result_table(found, facts, report, page, trained, task):
    """Return the table of results that ends a run."""
    latency = report.latency_ms or {}
    rows = {
        **dict(found.rows()),
        "training speed": f"{_number(facts['examples_per_second'], '{:.1f}')} examples/s, "
        f"{_number(facts['tokens_per_second'], '{:.0f}')} tokens/s",
        "padding": f"{facts['padding_share']:.1%} of all tokens",
        "peak memory": f"{facts['peak_memory_bytes'] / 1e9:.2f} GB",
        "exported size": f"{report.bytes / 1e6:.1f} MB",
        **{
            f"serving latency, {batch.replace('_', ' ')}": f"{times['median']:.1f} ms median, "
            f"{times['p95']:.1f} ms p95"
            for batch, times in latency.items()
        },
        "exported vs in memory": f"{report.max_abs_difference:.1e} largest difference",
        "SavedModel": str(report.directory),
        "run report": str(page),
    }
    if trained is not None:
        use = "keras-efficient compress" if task.compresses else "ke.models.load"
        rows["trained model"] = f"{trained} (for {use})"
    table = Table(title="Result", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(printable(value)))
    return table


def _number(value, form):
    return "n/a (too few steps)" if value is None else form.format(value)
