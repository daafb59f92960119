"""Command `finetune`: from a file of labelled texts to a verified SavedModel."""

import contextlib
import math
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.cli._finetune_display import Plan, result_table, tiles
from keras_efficient.data._data_files import files_name
from keras_efficient.models._save import check_savable
from keras_efficient.models._trained_folder import free_folder


@dataclass(frozen=True)
class Settings:
    """Options of the command, validated as far as possible without reading files."""

    data: Path | tuple[Path, ...]
    model: str
    output: Path
    text_column: str | tuple[str, ...]
    label_column: str | tuple[str, ...]
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
    task: str = "classification"
    delimiter: str | None = None
    tokens_dir: Path | None = None
    class_weights: str | None = None
    metric: str | None = None
    patience: int | None = None
    quantize: str | None = None
    target: str | None = None
    log_seconds: float = 30.0

    @classmethod
    def names(cls) -> set[str]:
        """Return the names of the options."""
        return {field.name for field in fields(cls)}

    def __post_init__(self):
        from keras_efficient.dtype_policies._mixed_precision import POLICIES
        from keras_efficient.flavor import LIBRARIES

        for name, choices in (
            ("library", LIBRARIES),
            ("precision", ("auto", *POLICIES)),
            ("class_weights", (None, "balanced")),
            ("metric", (None, *self.definition.choices)),
            ("quantize", (None, "int8", "int8-weights", "bfloat16")),
            ("target", (None, "avx2", "vnni", "amx")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(
                    f"--{name.replace('_', '-')} must be one of "
                    f"{', '.join(c for c in choices if c)}. Received: {value!r}."
                )
        if self.target is not None and self.quantize != "int8":
            raise InputError(
                "--target is for the products of --quantize int8. Received: --target "
                f"{self.target} with --quantize {self.quantize}. Leave out one, or change the "
                "other."
            )
        for name in (
            "epochs",
            "batch_size",
            "microbatch_size",
            "learning_rate",
            "validation",
            "patience",
            "log_seconds",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(
                    f"--{name.replace('_', '-')} must be positive and finite. Received: {value}."
                )
        if self.tokens_dir is not None and self.validation_data is None:
            raise InputError(
                "--tokens-dir is for data larger than memory, of which no rows are split off. "
                f"Received: --tokens-dir {self.tokens_dir} without --validation-data. Give files "
                "to evaluate on."
            )
        if self.validation >= 1 and self.validation != int(self.validation):
            raise InputError(
                "--validation must be a share below 1 or a whole number of rows. Received: "
                f"{self.validation}."
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed must lie from 0 to {2**32 - 1}. Received: {self.seed}.")

    @property
    def data_name(self) -> str:
        """The file of the data, or the first and the number of the others."""
        return data_name(self.data)

    @property
    def validation_size(self) -> float | int:
        """`validation` as `ke.data.split` takes it: a share below 1, or a number of rows."""
        return self.validation if self.validation < 1 else int(self.validation)

    @property
    def definition(self) -> ke.tasks.Task:
        """The task: of pairs of texts if two columns are named."""
        pairs = not isinstance(self.text_column, str) and len(self.text_column) == 2
        task = ke.tasks.get(self.task, texts=2 if pairs else None)
        if not task.finetunes:
            raise InputError(
                f"`finetune` trains by a loss of single examples. Received: --task {task.name}, "
                "which compares all examples of a batch. Train it in Python, with ke.contrastive."
            )
        return task

    @property
    def selection(self) -> str | None:
        """The metric by which the best epoch is found; None for the last epoch."""
        default = None if self.patience is None else next(iter(self.definition.choices))
        return self.metric or default


def run(settings: Settings):
    """Check the input, train, evaluate, export, write the run report, and print a table."""
    console = Console(stderr=True)
    task = settings.definition
    train, validation = _read(settings, task)
    labels = list(train.label_names) or None
    head_size = task.head_size(len(train.label_names) or None)
    version = ke.exporters.check_destination(settings.output)

    with console.status("Loading TensorFlow and the model ..."):
        precision = ke.mixed_precision(settings.precision, library=settings.library)
        # Before the model, because Keras 3 draws the seeds of dropout layers when they are made.
        ke.flavor.get(settings.library).keras.utils.set_random_seed(settings.seed)
        model, tokenizer = ke.models.load(
            settings.model,
            task=task,
            num_labels=len(train.label_names) or None,
            library=settings.library,
            seed=settings.seed,
        )
        flavor = ke.flavor.of(model)
        weight_bytes = sum(w.shape.num_elements() * w.dtype.size for w in flavor.weights(model))
        # The export, the trained model, and two checkpoints of weights and two moments: one stays,
        # one is written.
        ke.exporters.check_destination(settings.output, needed_bytes=8 * weight_bytes)
        # A batch of short texts weighs its few tokens as much as others their many: that costs a
        # language model perplexity, and without padding it gains little.
        grouped = _on_cpu() and task.head != "next_token"
        batches = task.batches(
            train,
            tokenizer,
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            seed=settings.seed,
            group_by_length=grouped,
        )
        stats = batches.stats
        held_out = task.batches(
            validation,
            tokenizer,
            training=False,
            # The logits of language models take much memory.
            batch_size=64 if task.labelled else settings.batch_size,
            max_length=settings.max_length,
        )
        task = task.with_data(held_out)
        exported = _exported_tokenizer(tokenizer, task, console)
        savable = _is_savable(tokenizer, console)
        # What the export will need: a run must not fail at its end. The tokenizer was checked,
        # and tracing its graph once more would take seconds.
        ke.exporters.check_export(
            model,
            settings.output,
            sample=next(iter(held_out)),
            quantize=settings.quantize,
            target=settings.target,
            labels=labels,
            task=task,
        )
        blocks = _without_padding(model, task)
    class_weights = None if settings.class_weights is None else task.class_weights(train)
    plan = Plan(settings, train, validation, stats, held_out.stats, tokenizer.max_length, blocks)
    plan.show(console, precision, version, weight_bytes, class_weights)

    _compile(model, settings, stats.batches, head_size)
    if settings.microbatch_size:
        ke.accumulate(model, microbatch_size=settings.microbatch_size)
    resume = ke.callbacks.Resume(
        # Beside the versions: a folder inside of ".../NAME/3" would make that version exist.
        version.parent / ".checkpoint",
        every_steps=200,
        keep=1,
        settings={
            "task": task.name,
            "data": train.fingerprint,
            "model": settings.model,
            "library": settings.library,
            "batch_size": settings.batch_size,
            "group_by_length": grouped,
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "max_length": settings.max_length,
            "precision": precision.policy,
            "seed": settings.seed,
            "class_weights": settings.class_weights,
            "metric": settings.selection,
            "patience": settings.patience,
        },
        overwrite=not settings.resume,
        signals=(signal.SIGINT, signal.SIGTERM),
        verbose=0,
    )
    directory = resume.store.directory
    if settings.resume:
        if not resume.load_position():
            raise InputError(
                f"There must be a checkpoint to resume. Received: {str(directory)!r} without one. "
                "Start the run without --resume."
            )
        console.print(f"Resuming after epoch {resume.epoch}, step {resume.step}.")
    if settings.dry_run:
        console.print("Dry run: nothing was trained or written.")
        return
    _make(directory)

    speed = ke.callbacks.Throughput()
    log = ke.callbacks.RunLog(speed)
    best = _best_epoch(flavor, settings)
    bar = ke.callbacks.progress_bar(console)
    # A bar is drawn again and again in a terminal; elsewhere there are plain lines.
    bar.disable = not sys.stderr.isatty()
    lines = ke.callbacks.ProgressLines(settings.log_seconds, speed)
    try:
        with bar:
            progress = lines if bar.disable else ke.callbacks.Progress(bar, speed)
            model.fit(
                # Without an end: Keras 3 starts a finite dataset twice per epoch, and each start
                # of a shuffled one takes the next order.
                batches.repeat(),
                epochs=settings.epochs,
                steps_per_epoch=stats.batches,
                validation_data=held_out,
                callbacks=[speed, log, progress, *([] if best is None else [best]), resume],
                class_weight=class_weights,
                # Keras 3 warns that it does not shuffle a tf.data.Dataset.
                shuffle=False,
                verbose=0,
            )
            if best is not None and best.best_weights is not None:
                # tf_keras restores them only if it stopped early.
                model.set_weights(best.best_weights)
            found: Any = None
            if settings.quantize is None:
                found = task.evaluate(
                    model,
                    _counted(bar, "evaluate", held_out, held_out.stats.batches),
                    labels,
                    tokenizer=tokenizer,
                )
            exporting = bar.add_task("export", total=1, speed="write, reload, compare")
            if bar.disable:
                print("export: write, reload, compare", file=sys.stderr, flush=True)
            facts = {
                "examples_per_second": speed.examples_per_second,
                "tokens_per_second": speed.tokens_per_second,
                "padding_share": stats.padding_share,
                "peak_memory_bytes": speed.peak_memory_bytes,
                "seed": settings.seed,
                "data_fingerprint": train.fingerprint,
                "precision": precision.policy,
            }
            if best is not None and settings.selection is not None:
                facts |= {
                    "selected_by": f"{task.choices[settings.selection][0]} on the held-out rows",
                    "best_epoch": best.best_epoch + 1,
                }
            if found is not None:
                facts |= {**found.measures(), "quality": found}
            report = ke.export(
                model,
                settings.output,
                sample=next(iter(held_out)),
                quantize=settings.quantize,
                target=settings.target,
                tokenizer=exported,
                labels=labels,
                task=task,
                # What is served differs from the model in memory: report what is served.
                evaluate=settings.quantize and ke.exporters.Evaluation(held_out, max_drop=1.0),
                facts=facts,
            )
            bar.update(exporting, completed=1)
    except KeyboardInterrupt:
        _print_how_to_resume(console, resume)
        raise typer.Exit(130) from None
    except SystemExit as stopped:
        if stopped.code != ke.checkpoint.EXIT_PREEMPTED:
            raise
        _print_how_to_resume(console, resume)
        raise typer.Exit(ke.checkpoint.EXIT_PREEMPTED) from None
    found = found or report.quality
    trained = None
    if savable:
        trained = free_folder(report.directory.parent, int(report.directory.name))
        kept = _facts_for_compress(settings, train, validation, found)
        ke.models.save(model, tokenizer, trained, label_names=labels, task=task, facts=kept)
    shutil.rmtree(directory, ignore_errors=True)
    page = ke.exporters.write_html_report(
        report.directory / "report.html",
        title=f"{Path(settings.model).name} on {Path(settings.data_name).name}",
        steps=log.steps,
        epochs=log.epochs,
        facts=tiles(found, facts, stats, settings, precision),
        report=report,
    )
    Console().print(result_table(found, facts, report, page, trained, task))
    # Its warnings come last, where they are seen.
    Console().print(found)


def _exported_tokenizer(tokenizer, task, console):
    """Return the tokenizer for the export, or None if it cannot answer with it.

    This is checked before the training, not after it.
    """
    from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_tokenizer

    try:
        text_tokenizer(tokenizer, task)
        return tokenizer
    except InputError as error:
        takes, found = f"token ids only. {error}", None
        if task.generates:
            with contextlib.suppress(InputError):
                task.check_tokenizer(tokenizer)
                takes, found = f"token ids, and answer with texts. {error}", tokenizer
    console.print(f"The export will take {takes}", soft_wrap=True)
    return found


def _is_savable(tokenizer, console):
    """Return whether the trained model can be left with its tokenizer."""
    try:
        check_savable(tokenizer)
    except InputError as error:
        console.print(f"No trained model will be left beside the export. {error}", soft_wrap=True)
        return False
    return True


def _facts_for_compress(settings, train, validation, found):
    """Return what `compress` needs to evaluate on the same rows, and never on others."""
    other = settings.validation_data
    return {
        "data": settings.data_name,
        "text_column": settings.text_column,
        "label_column": settings.label_column,
        "delimiter": settings.delimiter,
        "validation_data": None if other is None else str(other.absolute()),
        "validation": settings.validation_size,
        "seed": settings.seed,
        "max_length": settings.max_length,
        "train_fingerprint": train.fingerprint,
        "validation_fingerprint": validation.fingerprint,
        **found.measures(),
    }


def _read(settings, task):
    """Return training and validation records, or raise the problems of the files."""
    columns = {
        "text_column": settings.text_column,
        "label_column": settings.label_column if task.labelled else None,
        "delimiter": settings.delimiter,
    }
    train: Any
    if settings.tokens_dir is None:
        train = task.read(settings.data, **columns)
    else:
        # The tokenizer of the folder: the model is made when the number of classes is known.
        train = task.tokenize_to_disk(
            settings.data,
            ke.data.Tokenizer.from_directory(settings.model, inputs=ke.data.HUGGING_FACE),
            settings.tokens_dir,
            max_length=settings.max_length,
            **columns,
        )
    task.check(train)
    if settings.validation_data is not None:
        names = train.label_names or None
        return train, task.read(settings.validation_data, label_names=names, **columns)
    train, validation = ke.data.split(
        train, validation=settings.validation_size, seed=settings.seed
    )
    task.check(train, validation)
    return train, validation


def data_name(data: Path | tuple[Path, ...]) -> str:
    """Return the name of a file, or that of the first of several with the number of the others."""
    return files_name(data if isinstance(data, tuple) else (data,))


def _make(directory):
    """Create a folder before training: permissions do not tell of every file system's refusal."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The output's folder must be writable. Received: {str(directory.parent)!r} "
            f"({error.strerror}). Choose another path."
        ) from error


def _compile(model, settings, steps_per_epoch, head_size):
    keras = ke.flavor.of(model).keras
    total = steps_per_epoch * settings.epochs
    rate = ke.schedules.warmup_linear(
        settings.learning_rate, warmup_steps=total // 10, total_steps=total
    )
    # XLA takes minutes to compile a training step for a CPU; on GPUs the library decides.
    xla = {"jit_compile": False} if _on_cpu() else {}
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
        settings.definition.loss(keras),
        metrics=settings.definition.metrics(keras, head_size),
        # KerasHub's language models would add an accuracy that counts padding.
        weighted_metrics=[],
        **xla,
    )


def _on_cpu():
    """Return whether there is no GPU. Then XLA is not used, and batches may have many shapes."""
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def _without_padding(model, task):
    """Apply `ke.unpad`; return what it does, for the plan."""
    if not _on_cpu():
        return "padding is computed, since XLA compiles fixed shapes"
    try:
        # The losses of tasks of tokens leave out those of padding.
        report = ke.unpad(model, ignore_padding_outputs=task.head != "text")
        lines = str(report).removeprefix("unpad: ").splitlines()
        return "; ".join(map(str.strip, lines))
    except ValueError as error:
        # The checks say why; the run itself does not need it.
        return f"padding is computed: {str(error).partition('Received: ')[2] or error}"


def _best_epoch(flavor, settings):
    """Return the library's `EarlyStopping`, which also keeps the best weights, or None."""
    if settings.selection is None:
        return None
    return flavor.keras.callbacks.EarlyStopping(
        monitor=f"val_{settings.selection}",
        mode=settings.definition.choices[settings.selection][1],
        patience=settings.patience or settings.epochs,
        restore_best_weights=True,
    )


def _counted(bar, description, batches, total):
    """Yield the batches, and show their number."""
    task = bar.add_task(description, total=total, speed="")
    if bar.disable:
        print(f"{description}: {total} batches", file=sys.stderr, flush=True)
    for batch in batches:
        yield batch
        bar.update(task, advance=1)


def _print_how_to_resume(console, resume):
    # Checkpoints in the folder may be those of an earlier run.
    if not (resume.epoch or resume.step):
        console.print("\nInterrupted before the first update: there is nothing to resume.")
        return
    words = [word for word in sys.argv if word != "--resume"]
    command = shlex.join(["keras-efficient", *words[1:], "--resume"])
    console.print(
        f"\nInterrupted. The state after epoch {resume.epoch}, step {resume.step} is kept in "
        f"{resume.store.directory}. Continue with:\n  {command}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
