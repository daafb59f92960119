"""`ExportReport`: size, latency, accuracy and exactness of an exported version."""

import dataclasses
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError, listed
from keras_efficient.metrics import TaskReport


@dataclass(frozen=True)
class ExportReport:
    """Facts about an exported version, written to its `report.json`.

    Attributes:
        directory: path of the version. It is not part of the JSON, since versions are moved.
        bytes: int, size of the version's files in bytes, without report and manifest.
        weight_bytes: int, size of the model's variables in bytes as they are stored, each counted
            once.
        max_abs_difference: float, largest absolute difference between the served outputs and those
            of the model in memory, on the sample.
        tolerance: float, the difference allowed, relative to the largest output or 1.
        signature: {"inputs" and "outputs": {name: {"dtype", "shape"}}} of the default signature;
            None is any size.
        versions: {library: version}.
        created: str, time in UTC, in ISO 8601.
        latency_ms: {"batch_1" and "batch_8": {"median", "p95"}} in milliseconds on this machine's
            CPU, or None if it was not measured.
        max_rss_bytes: int, peak memory in bytes of the process that served the sample, or None.
        quantize: str, the export's `quantize`, or None.
        storage: dict from a form of storage, such as "float32" or "4-bit codebook of int8", to the
            bytes of the weights that are stored so; their sum is `weight_bytes`. None for LiteRT.
        evaluation: {"examples", "metric", "in_memory", "served"}, the number of examples, the name
            of the task's score and its values, or None.
        quality: the report of the task, such as a `ke.metrics.ClassificationReport`, given in the
            export's `facts`, or else that of the served model if it was evaluated, or None. A dict
            in the JSON.
        accuracy: float, accuracy given in the export's `facts`, or else the served accuracy if it
            was measured, or None.
        examples_per_second: float, speed of the training, from the export's `facts`, or None.
        seed: seed of the training, from the export's `facts`, or None.
        data_fingerprint: fingerprint of the training data, from the export's `facts`, or None.
        facts: dict, the other facts given to the export.
        candidates: with format="auto", {format: facts} of each format: "directory", "bytes",
            "max_abs_difference", "median_ms" ({case: milliseconds}) and "speed", relative to the
            slowest on average over the cases; or "refused", the reason. Otherwise None.
        recommended: str, the fastest format on this machine, or None.
    """

    directory: Path
    bytes: int
    weight_bytes: int
    max_abs_difference: float
    tolerance: float
    signature: dict
    versions: dict
    created: str
    latency_ms: dict | None = None
    max_rss_bytes: int | None = None
    quantize: str | None = None
    storage: dict | None = None
    evaluation: dict | None = None
    quality: TaskReport | None = None
    accuracy: float | None = None
    examples_per_second: float | None = None
    seed: Any = None
    data_fingerprint: Any = None
    facts: dict = field(default_factory=dict)
    candidates: dict | None = None
    recommended: str | None = None

    def to_json(self) -> str:
        """Return all attributes except `directory` as JSON, in a fixed order."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["directory"]
        values["quality"] = None if self.quality is None else finite(self.quality.to_dict())
        first = ("accuracy", "examples_per_second", "bytes", "weight_bytes", "latency_ms")
        ordered = {name: values.pop(name) for name in first} | values
        return json.dumps(ordered, indent=2, allow_nan=False) + "\n"

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        rows = [
            ("SavedModel", f"{self.bytes / 1e6:,.2f} MB"),
            ("Weights", f"{self.weight_bytes / 1e6:,.2f} MB"),
        ]
        if self.quality is not None:
            rows += self.quality.rows()
            rows += [("Warning", text) for text in self.quality.warnings]
        elif self.accuracy is not None:
            rows.append(("Accuracy", f"{self.accuracy:.4f}"))
        if self.examples_per_second is not None:
            rows.append(("Training", f"{self.examples_per_second:,.1f} examples/s"))
        for batch, times in (self.latency_ms or {}).items():
            label = f"Latency, batch {batch.removeprefix('batch_')}"
            rows.append((label, f"{times['median']:.2f} ms (p95 {times['p95']:.2f} ms)"))
        if self.max_rss_bytes is not None:
            rows.append(("Memory when served", f"{self.max_rss_bytes / 1e6:,.0f} MB"))
        rows.append(
            (
                "Difference to memory",
                f"{self.max_abs_difference:.2g} (tolerance {self.tolerance:g}, relative)",
            )
        )
        if self.quantize is not None:
            rows.append(("Written as", self.quantize))
        if self.storage is not None:
            forms = (f"{size / 1e6:,.2f} MB {form}" for form, size in self.storage.items())
            rows.append(("Stored as", ", ".join(forms)))
        if self.evaluation is not None:
            found = self.evaluation
            rows.append(
                (
                    f"{found['metric'][0].upper()}{found['metric'][1:]}, served",
                    f"{found['served']:.4f} on {found['examples']:,} examples (in memory "
                    f"{found['in_memory']:.4f})",
                )
            )
        for name, found in (self.candidates or {}).items():
            text = found.get("refused") or f"{found['speed']:.2f}x, {found['directory']}"
            mark = " (recommended)" if name == self.recommended else ""
            rows.append((f"Format {name}{mark}", text))
        for side, tensors in self.signature.items():
            for name, spec in tensors.items():
                shape = ", ".join("any" if n is None else str(n) for n in spec["shape"])
                rows.append((side.removesuffix("s").title(), f"{name}: {spec['dtype']} [{shape}]"))
        shown = {} if self.quality is None else self.quality.measures()
        facts = {"seed": self.seed, "data_fingerprint": self.data_fingerprint, **self.facts}
        rows += [
            readable(name, value)
            for name, value in facts.items()
            if value is not None and name not in shown
        ]
        rows.append(("Versions", ", ".join(f"{k} {v}" for k, v in self.versions.items())))
        rows.append(("Created", self.created))
        return rows

    def __str__(self):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=f"Exported to {self.directory}", show_header=False, title_justify="left"
        )
        table.add_column(no_wrap=True)
        table.add_column()
        for label, value in self.rows():
            # Text keeps rich from interpreting brackets in a name as markup.
            table.add_row(label, Text(value))
        buffer = io.StringIO()
        console = Console(file=buffer, width=100, color_system=None)
        console.print(table)
        return buffer.getvalue().rstrip("\n")


#: Units of facts, by the end of their names.
_UNITS = {
    "_bytes": lambda value: f"{value / 1e6:,.1f} MB",
    "_share": "{:.1%}".format,
    "_per_second": "{:,.1f}".format,
    "_seconds": "{:,.1f} s".format,
    "_ms": "{:,.2f} ms".format,
}


def readable(name: str, value: Any) -> tuple[str, str]:
    """Return a fact's name and value for display: "peak_memory_bytes" as "Peak memory", in MB."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    for end, form in _UNITS.items():
        if number and name.endswith(end):
            kept = end if end in ("_share", "_per_second") else ""
            label = name.removesuffix(end) + kept
            return label.replace("_", " ").capitalize(), form(value)
    if isinstance(value, list | tuple) and all(isinstance(x, str | int | float) for x in value):
        value = listed(value, quoted=False)
    elif isinstance(value, dict):
        value = ", ".join(f"{key}: {item}" for key, item in value.items())
    elif isinstance(value, bool):
        value = "yes" if value else "no"
    return name.replace("_", " ").capitalize(), str(value)


def check_facts(facts) -> dict:
    """Return `facts` as plain JSON values; NaN and infinities become None.

    Raises:
        InputError: `facts` is not a dict, JSON cannot hold a value, or a measurement is not a
            number.
    """
    try:
        facts = {} if facts is None else {**facts}
        quality = facts.pop("quality", None)
        plain = {name: finite(value) for name, value in facts.items()}
        json.dumps(plain, allow_nan=False)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "`facts` must be a dict of names to numbers, strings, lists or dicts, since it becomes "
            f"JSON. Received: {facts!r} ({error}). Convert those values first."
        ) from error
    for name in ("accuracy", "examples_per_second"):
        value = plain.get(name)
        if value is not None and not isinstance(value, int | float):
            raise InputError(
                f"The fact {name!r} must be a number or None. Received: {value!r}. Give it as a "
                "float, such as 0.83, or under another name."
            )
    if quality is not None and not isinstance(quality, TaskReport):
        raise InputError(
            "The fact 'quality' must be the report of an evaluation. Received: "
            f"{quality!r:.100}. Give what ke.metrics.evaluate_classifier or `evaluate` of a task "
            "returns, or name that fact otherwise."
        )
    return plain if quality is None else {**plain, "quality": quality}


def finite(value: Any) -> Any:
    """Return plain JSON values; NaN and infinities become None."""
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
