"""Command `compress`: from a fine-tuned model to a small int8 one, with every candidate tried."""

import dataclasses
import glob
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.cli._compress_display import show_plan
from keras_efficient.cli._finetune import data_name

#: Exit code if no candidate reaches the target and keeps the accuracy.
NONE_FOUND = 3


@dataclass(frozen=True)
class Settings:
    """Options of the command that `CompressSettings` does not have."""

    model: Path
    data: Path | tuple[Path, ...]
    output: Path
    text_column: str | tuple[str, ...] | None
    label_column: str | tuple[str, ...] | None
    delimiter: str | None
    validation_data: Path | None
    validation: float | None
    unlabelled: Path | None
    log_seconds: float
    dry_run: bool
    resume: bool


def fraction(text: str) -> float:
    """Return the share that "1%" or "0.01" means.

    Raises:
        InputError: it is neither.
    """
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise InputError(
            "`max_drop` must be a share of the score, as a percentage or a number below 1. "
            f"Received: {text!r}. Give for example 1% or 0.01."
        )
    return value


def run(settings: Settings, pipeline: Any) -> None:
    """Check everything, show the plan, run the phases, and print the result.

    Args:
        settings: options of the command.
        pipeline: dict of the fields of `CompressSettings` that were given.

    Raises:
        typer.Exit: with 3 if no candidate reaches the target and keeps the accuracy.
    """
    from keras_efficient.pipelines._compress import run_phases
    from keras_efficient.pipelines._compress_run import check_compresses

    console = Console(stderr=True)
    info = ke.models.info(settings.model)
    task = ke.tasks.get(info.task, texts=info.texts)
    check_compresses(task)
    if pipeline["seed"] is None:
        pipeline["seed"] = info.facts.get("seed", 0)
    if pipeline["max_length"] is None:
        pipeline["max_length"] = info.facts.get("max_length", 128)
    chosen = ke.pipelines.CompressSettings(**pipeline)
    columns = _columns(settings, info)
    train, validation = _read(settings, info, task, chosen.seed, columns)
    unlabelled: Any = ()
    if settings.unlabelled is not None:
        named = columns["text_column"]
        if named == "text" and task.texts == 2:
            named = task.inputs
        unlabelled = ke.data.read_records(
            settings.unlabelled,
            text_column=named,
            label_column=None,
            delimiter=columns["delimiter"],
        )

    progress = _Progress(console, settings.log_seconds)
    with console.status("Loading TensorFlow and the model, and measuring a few steps ..."):
        model, tokenizer = ke.models.load(info.directory)
        phases = ke.pipelines.CompressRun(
            model,
            tokenizer,
            train,
            validation,
            settings.output,
            chosen,
            unlabelled=unlabelled,
            say=progress.say,
            callbacks=progress.callbacks,
            task=task,
        )
        phases.check(settings.resume)
        plan = phases.plan()
    show_plan(console, plan, info, phases.folder.path)
    if "train_fingerprint" not in info.facts:
        console.print(
            "Warning: the model does not tell which rows it was trained on. Make sure that those "
            "it is evaluated on were not among them.",
            style="yellow",
        )
    if settings.dry_run:
        console.print("Dry run: nothing was trained or written.")
        return
    phases.open(settings.resume)
    try:
        report = run_phases(phases, progress.batches)
    except KeyboardInterrupt:
        _print_how_to_resume(console, settings.output)
        raise typer.Exit(130) from None
    except SystemExit as stopped:
        if stopped.code != ke.checkpoint.EXIT_PREEMPTED:
            raise
        _print_how_to_resume(console, settings.output)
        raise typer.Exit(ke.checkpoint.EXIT_PREEMPTED) from None
    finally:
        phases.close()
    out = Console()
    out.print(report)
    folder = Path(report.directory)
    out.print(
        f"Report and plot: {folder / 'report.json'}, {folder / 'front.png'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if report.recommended is None:
        raise typer.Exit(NONE_FOUND)
    out.print(
        f"Serve it: keras-efficient serve {_served(report.row(report.recommended))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _served(row):
    """Return the folder of versions of an export, or Keras' export itself."""
    path = Path(row["directory"])
    return shlex.quote(str(path.parent if path.name == "1" else path))


def _columns(settings, info):
    """Return how the data are read: by the options, or else as they were for the model."""
    defaults = {"text_column": "text", "label_column": "label", "delimiter": None}
    columns = {}
    for name, default in defaults.items():
        value = getattr(settings, name)
        if value is None:
            value = info.facts.get(name, default)
        # JSON has lists.
        columns[name] = tuple(value) if isinstance(value, list) else value
    return columns


def _read(settings, info, task, seed, columns):
    """Return the records to train on, and those that the model has not seen.

    Args:
        settings: options of the command.
        info: the `TrainedModelInfo` of the model.
        task: its `ke.tasks.Task`.
        seed: seed of the division if the model does not tell its own.
        columns: what `_columns` returned.

    Raises:
        InputError: a file cannot be used, or the rows that were held out from the model's training
            cannot be told from the others.
    """
    columns = {**columns, "label_names": info.label_names or None}
    records = task.read(settings.data, **columns)
    known = "train_fingerprint" in info.facts
    other = settings.validation_data
    if other is None and info.facts.get("validation_data"):
        other = Path(info.facts["validation_data"])
        if not (other.exists() or glob.glob(str(other), recursive=True)):
            raise InputError(
                "The model was evaluated on a file of its own. Received: no --validation-data, and "
                f"{str(other)!r}, which does not exist. Give --validation-data."
            )
    if other is not None:
        return records, task.read(other, **columns)
    size = info.facts.get("validation", 0.1) if settings.validation is None else settings.validation
    if isinstance(size, float) and size >= 1:
        size = int(size)
    # The other --seed is that of the training.
    seed = info.facts.get("seed", 0) if known else seed
    train, validation = ke.data.split(records, validation=size, seed=seed)
    if known and train.fingerprint != info.facts["train_fingerprint"]:
        raise InputError(
            "A model must be evaluated on texts that it was not trained on. Received: "
            f"{data_name(settings.data)!r}, of which --validation {size:g} leaves other rows for "
            f"training than those of {info.facts.get('data')!r} with --validation "
            f"{info.facts.get('validation'):g} that the model was trained on. Give the same file, "
            "or --validation-data with labelled texts that the model has not seen."
        )
    return train, validation


class _Progress:
    """What the command shows while it runs: bars in a terminal, lines elsewhere."""

    def __init__(self, console, log_seconds):
        self.console, self.log_seconds = console, log_seconds
        self.in_terminal = sys.stdout.isatty() and sys.stderr.isatty()

    def say(self, line):
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def callbacks(self, name):
        speed = ke.callbacks.Throughput()
        if self.in_terminal:
            return [speed, ke.callbacks.Progress(throughput=speed)]
        return [speed, ke.callbacks.ProgressLines(self.log_seconds, speed)]

    def batches(self, data):
        """Return the batches again, with their number."""
        return _Counted(data, self) if self.in_terminal else data


class _Counted:
    """Batches whose number is shown while they are iterated."""

    def __init__(self, data, progress):
        self.data, self.progress = data, progress

    def cardinality(self):
        return self.data.cardinality()

    def __iter__(self):
        with ke.callbacks.progress_bar(self.progress.console) as bar:
            task = bar.add_task("teacher", total=self.data.stats.batches, speed="")
            for batch in self.data:
                yield batch
                bar.update(task, advance=1)


def _print_how_to_resume(console, output):
    words = [word for word in sys.argv if word != "--resume"]
    command = shlex.join(["keras-efficient", *words[1:], "--resume"])
    console.print(
        f"\nInterrupted. What was finished is kept in {output}. Continue with:\n  {command}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def pipeline_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are fields of `CompressSettings`, with `max_drop` as a number."""
    fields = {field.name for field in dataclasses.fields(ke.pipelines.CompressSettings)}
    found = {name: value for name, value in options.items() if name in fields}
    return found | {"max_drop": fraction(options["max_drop"])}
