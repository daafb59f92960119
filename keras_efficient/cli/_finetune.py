"""`keras-efficient finetune`: from a file of labelled texts to a checked SavedModel."""

import math
import shlex
import shutil
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import keras_efficient as ke
from keras_efficient._errors import InputError


@dataclass(frozen=True)
class Settings:
    """What the command line asks for, checked as far as it can be without reading anything."""

    data: Path
    model: str
    output: Path
    text_column: str
    label_column: str
    validation_data: Path | None
    validation: float
    library: str
    epochs: int
    batch_size: int
    microbatch_size: int | None
    learning_rate: float
    precision: str
    max_length: int
    seed: int
    dry_run: bool
    resume: bool

    @classmethod
    def names(cls):
        return {field.name for field in fields(cls)}

    def __post_init__(self):
        from keras_efficient.dtype_policies._mixed_precision import POLICIES
        from keras_efficient.flavor import LIBRARIES

        for name, choices in (("library", LIBRARIES), ("precision", ("auto", *POLICIES))):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(
                    f"--{name} must be one of {', '.join(choices)}. Received: {value!r}."
                )
        for name in ("epochs", "batch_size", "microbatch_size", "learning_rate", "validation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(
                    f"--{name.replace('_', '-')} must be positive and finite. Received: {value}."
                )
        if self.validation >= 1 and self.validation != int(self.validation):
            raise InputError(
                "--validation must be a share below 1 or a whole number of rows. Received: "
                f"{self.validation}."
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed must lie from 0 to {2**32 - 1}. Received: {self.seed}.")

    @property
    def share(self):
        """`validation` as `ke.data.split` wants it: a share, or a count."""
        return self.validation if self.validation < 1 else int(self.validation)


def run(settings):
    """Check, train, evaluate, export, report; returns nothing and prints a table."""
    console = Console(stderr=True)
    train, validation = _read(settings)
    version = ke.versions.check_destination(settings.output)

    with console.status("Loading TensorFlow and the model ..."):
        precision = ke.mixed_precision(settings.precision, library=settings.library)
        # Before the model: Keras 3 draws the seeds of its dropout layers when it makes them.
        ke.flavor.get(settings.library).keras.utils.set_random_seed(settings.seed)
        model, tokenizer = ke.models.load(
            settings.model,
            num_labels=len(train.label_names),
            library=settings.library,
            seed=settings.seed,
        )
        flavor = ke.flavor.of(model)
        weight_bytes = sum(w.shape.num_elements() * w.dtype.size for w in flavor.weights(model))
        # The export, and a checkpoint of weights and two moments while its successor is written.
        ke.versions.check_destination(settings.output, needed_bytes=7 * weight_bytes)
        batches = _Batches(settings, train, tokenizer)
        stats = batches.epoch(0).stats
        held_out = ke.data.text(
            validation, tokenizer, batch_size=64, max_length=settings.max_length
        )
        in_graph = _runs_in_graph(tokenizer, console)
    _plan(console, settings, train, validation, stats, precision, version, weight_bytes)

    _compile(model, settings, stats.batches)
    if settings.microbatch_size:
        ke.accumulate(model, microbatch_size=settings.microbatch_size)
    checkpoint = ke.callbacks.Checkpoint(
        # Beside the versions: one inside of ".../NAME/3" would make that version exist.
        version.parent / ".checkpoint",
        every_steps=200,
        settings={
            "data": train.fingerprint,
            "model": settings.model,
            "library": settings.library,
            "batch_size": settings.batch_size,
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "max_length": settings.max_length,
            "precision": precision.policy,
            "seed": settings.seed,
        },
    )
    if settings.resume:
        checkpoint.restore(model)
        console.print(f"Resuming after epoch {checkpoint.epoch}, step {checkpoint.step}.")
    if settings.dry_run:
        console.print("Dry run: nothing was trained or written.")
        return
    _make(checkpoint.directory)

    speed = ke.callbacks.Throughput()
    log = ke.callbacks.RunLog(speed)
    try:
        with ke.callbacks.progress_bar(console) as bars:
            progress = ke.callbacks.Progress(bars, speed)
            for dataset, first, last, steps in batches.left(checkpoint):
                model.fit(
                    dataset,
                    initial_epoch=first,
                    epochs=last,
                    steps_per_epoch=steps,
                    validation_data=held_out,
                    callbacks=[speed, log, progress, checkpoint],
                    verbose=0,
                    **batches.fit_arguments,
                )
            results = model.evaluate(held_out, return_dict=True, callbacks=[progress], verbose=0)
            exporting = bars.add_task("export", total=1, speed="write, reload bare, compare")
            # A run resumed after its last update has no speed.
            facts = {
                "accuracy": float(results["accuracy"]),
                "examples_per_second": speed.examples_per_second if log.steps else None,
                "tokens_per_second": speed.tokens_per_second if log.steps else None,
                "padding_share": stats.padding_share,
                "peak_memory_bytes": speed.peak_memory_bytes,
                "seed": settings.seed,
                "data_fingerprint": train.fingerprint,
                "labels": list(train.label_names),
                "precision": precision.policy,
            }
            report = ke.export(
                model,
                settings.output,
                sample=next(iter(held_out)),
                tokenizer=tokenizer if in_graph else None,
                facts=facts,
            )
            bars.update(exporting, completed=1)
    except KeyboardInterrupt:
        _interrupted(console, checkpoint)
        raise typer.Exit(130) from None
    checkpoint.remove()
    page = ke.exporters.write_html_report(
        report.directory / "report.html",
        title=f"{Path(settings.model).name} on {settings.data.name}",
        steps=log.steps,
        epochs=log.epochs,
        facts=_tiles(facts, stats, settings, precision),
        report=report,
    )
    Console().print(_table(facts, report, page))


class _Batches:
    """The training data of every epoch, from wherever a run starts."""

    def __init__(self, settings, records, tokenizer):
        self.settings, self.records, self.tokenizer = settings, records, tokenizer
        # Keras 3 warns that it will not shuffle a tf.data.Dataset unless told not to.
        self.fit_arguments = {"shuffle": False}

    def epoch(self, first):
        return ke.data.text(
            self.records,
            self.tokenizer,
            batch_size=self.settings.batch_size,
            max_length=self.settings.max_length,
            seed=self.settings.seed,
            first_epoch=first,
        )

    def left(self, checkpoint):
        """(dataset, first epoch, last epoch, steps per epoch) of each `fit` that is left to do.

        The datasets have no end: one iteration serves all epochs. Given a finite one, Keras 3
        starts it twice per epoch, tf_keras twice at first, and a start thrown away is an order
        thrown away; a resumed run would train on other orders than one that ran through.
        """
        epochs, epoch, step = self.settings.epochs, checkpoint.epoch, checkpoint.step
        dataset = self.epoch(epoch)
        batches = dataset.stats.batches
        if step >= batches:
            epoch, step = epoch + 1, 0
        if step:
            yield dataset.skip(step).repeat(), epoch, epoch + 1, batches - step
            epoch += 1
        if epoch < epochs:
            yield self.epoch(epoch).repeat(), epoch, epochs, batches


def _runs_in_graph(tokenizer, console):
    """Whether the export can take strings; asked before the training, not after it."""
    try:
        ke.exporters.TextTokenizer(tokenizer)
    except InputError as error:
        console.print(f"The export will take token ids only. {error}", soft_wrap=True)
        return False
    return True


def _read(settings):
    """Training and validation records; every problem in the files shows here."""
    columns = {"text_column": settings.text_column, "label_column": settings.label_column}
    train = ke.data.read_records(settings.data, **columns)
    ke.data.require_classes(train)
    if settings.validation_data is not None:
        return train, ke.data.read_records(
            settings.validation_data, label_names=train.label_names, **columns
        )
    train, validation = ke.data.split(train, validation=settings.share, seed=settings.seed)
    missing = set(range(len(train.label_names))) - set(train.labels.tolist())
    if missing:
        names = ", ".join(repr(train.label_names[index]) for index in sorted(missing))
        raise InputError(
            f"Every label must occur in the training part. Received: {names} only in the "
            "validation part. Add rows with that label, hold out fewer, or use another --seed."
        )
    return train, validation


def _make(directory):
    """Create a folder now: not every filesystem that refuses it says so in its permissions."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The output's folder must be writable. Received: {str(directory.parent)!r} "
            f"({error.strerror}). Choose another path."
        ) from error


def _compile(model, settings, steps_per_epoch):
    import tensorflow as tf

    keras = ke.flavor.of(model).keras
    total = steps_per_epoch * settings.epochs
    rate = ke.schedules.warmup_linear(
        settings.learning_rate, warmup_steps=total // 10, total_steps=total
    )
    # XLA takes minutes to compile a training step for a CPU; elsewhere the library knows best.
    on_cpu = not tf.config.list_logical_devices("GPU")
    xla = {"jit_compile": False} if on_cpu else {}
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **xla,
    )


def _interrupted(console, checkpoint):
    checkpoint.save_now()
    # What lies there may be an earlier run's.
    if not (checkpoint.epoch or checkpoint.step):
        console.print("\nInterrupted before the first update: there is nothing to resume.")
        return
    words = [word for word in sys.argv if word != "--resume"]
    command = shlex.join(["keras-efficient", *words[1:], "--resume"])
    console.print(
        f"\nInterrupted. The state after epoch {checkpoint.epoch}, step {checkpoint.step} is kept "
        f"in {checkpoint.directory}. Go on with:\n  {command}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _plan(console, settings, train, validation, stats, precision, version, weight_bytes):
    free = shutil.disk_usage(next(p for p in version.parents if p.exists())).free
    rows = {
        "data": f"{len(train)} to train on, {len(validation)} to evaluate on; "
        f"labels {', '.join(map(str, train.label_names))}",
        "batches": f"{stats.batches} per epoch of {stats.batch_size}, {len(stats.shapes)} shapes, "
        f"{stats.padding_share:.1%} padding",
        "model": f"{settings.model} ({settings.library}), {weight_bytes / 1e6:.1f} MB of weights",
        "precision": str(precision),
        "output": f"{version} ({free / 1e9:.0f} GB free)",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", escape(value))
    console.print(table)


def _tiles(facts, stats, settings, precision):
    return {
        "Accuracy": f"{facts['accuracy']:.2%}",
        "Examples per second": _number(facts["examples_per_second"], "{:.1f}"),
        "Tokens per second": _number(facts["tokens_per_second"], "{:.0f}"),
        "Padding share": stats.padding_share,
        "Peak memory": f"{facts['peak_memory_bytes'] / 1e9:.2f} GB",
        "Precision": precision.policy,
        "Batch size": settings.batch_size,
        "Epochs": settings.epochs,
        "Library": settings.library,
        "Model": settings.model,
        "Data": str(settings.data),
        "Learning rate": settings.learning_rate,
        "Microbatch size": settings.microbatch_size or "(the batch)",
        "Longest text (tokens)": settings.max_length,
        "Seed": settings.seed,
    }


def _table(facts, report, page):
    latency = report.latency_ms or {}
    rows = {
        "accuracy": f"{facts['accuracy']:.2%}",
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
    table = Table(title="Result", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _number(value, form):
    return "n/a (too few steps)" if value is None else form.format(value)
