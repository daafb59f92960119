"""`CompressRun`: the phases of `compress`, each of which leaves its result in a folder."""

import json
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient import flavor as flavors, tasks
from keras_efficient._errors import InputError
from keras_efficient.bench import ExportLatency, bench
from keras_efficient.bench._bench_report import latency_of
from keras_efficient.callbacks import Resume
from keras_efficient.compression import shrink
from keras_efficient.data import Records, augment_texts, trim_vocabulary
from keras_efficient.data._as_records import as_records
from keras_efficient.data._tokenizer import Tokenizer, as_tokenizer
from keras_efficient.distillation import TeacherCache, cache, distill
from keras_efficient.distillation._teacher import KerasTeacher
from keras_efficient.dtype_policies import mixed_precision
from keras_efficient.exporters import check_destination, keras_export
from keras_efficient.flavor import Model
from keras_efficient.models import load, save
from keras_efficient.models._save import check_savable
from keras_efficient.optimizers import NO_DECAY, AdamW
from keras_efficient.pipelines._compress_report import (
    CompressReport,
    compress_report,
    shown,
)
from keras_efficient.pipelines._compress_settings import CompressSettings
from keras_efficient.pipelines._plan import CompressPlan, make_plan
from keras_efficient.pipelines._quantized_export import plain_copy, quantized_export
from keras_efficient.pipelines._run_folder import RunFolder
from keras_efficient.pipelines._target import Target
from keras_efficient.schedules import warmup_linear
from keras_efficient.training import unpad

#: Batches on which `ke.shrink` chooses, and on which activations are calibrated.
_SHRINK_BATCHES, _CALIBRATION_BATCHES = 8, 16
#: How copies differ from their texts, as for `augment_texts`.
_ALTERATION: dict[str, Any] = {"replace": 0.2, "delete": 0.1}
#: Settings that `ke.distill` takes.
_DISTILLATION = ("alpha", "temperature", "divergence")
#: Why there is no candidate for a target.
_REFUSED = "refused.json"


class CompressRun:
    """The phases of `compress`, for callers that need them one by one.

    Each phase leaves its result in the folder and is skipped if it is there. Their order is that
    of the methods.

    Args:
        model: a trained model that `ke.models.load` returned, the teacher.
        tokenizer: its `ke.data.Tokenizer`.
        train: `Records` with labels on which candidates are trained.
        validation: `Records` with labels that neither the teacher nor a candidate sees in training.
        directory: path of the run's folder.
        settings: `CompressSettings`.
        unlabelled: further texts, or `Records` of texts or pairs, which only the teacher labels.
            Default: ().
        say: function of a line of text about the progress. Default: None, nothing is said.
        callbacks: function of a candidate's name that returns callbacks for its training. Default:
            None.
        task: name of the task that the model was trained for, of pairs of texts if `train` has
            them, or a `ke.tasks.Task`. Default: None, "classification".

    Attributes:
        label_names: names of the classes, or None if there are none.
        trimmed: the teacher with the trimmed vocabulary; set by `trim`.
        words: its tokenizer; set by `trim`.
        further: `Records` that only the teacher labels: the unlabelled ones and, after `trim`, the
            altered copies.
        seconds: dict of a phase's name to the seconds that it took in this process.

    Raises:
        InputError: the data have no labels or too few, or are single texts where the task is one
            of pairs; the tokenizer cannot be saved; or the task is one that compress does not take.

    Examples:
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2")
        >>> train, validation = ke.data.split(ke.data.read_records("reviews.csv"), validation=0.2)
        >>> settings = ke.pipelines.CompressSettings("speedup=2", max_length=32)
        >>> run = ke.pipelines.CompressRun(
        ...     model, tokenizer, train, validation, "compressed", settings
        ... )
        >>> run.trim()
        >>> len(run.words.encode(["a good film"])[0]) > 3
        True

    Reference:
        `ke.pipelines.compress`, which runs all phases.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        train: Records,
        validation: Records,
        directory: str | os.PathLike,
        settings: CompressSettings,
        *,
        unlabelled: Any = (),
        say: Callable[[str], Any] | None = None,
        callbacks: Callable[[str], list] | None = None,
        task: Any = None,
    ):
        self.model, self.tokenizer = model, as_tokenizer(tokenizer)
        check_savable(self.tokenizer)
        if not isinstance(task, tasks.Task):
            task = tasks.get(task, texts=2 if train.second_texts is not None else None)
        self.task = check_compresses(task)
        self.train, self.validation = train, validation
        self.label_names = train.label_names or None
        self.task.check(train)
        if validation.labels is None:
            raise InputError(
                "Candidates are evaluated on texts with labels. Received: validation records "
                f"without any ({validation.source}). Read them with their labels."
            )
        unlabelled = as_records(unlabelled)
        if not len(unlabelled):
            unlabelled = train.take([])
        for records in (train, validation, unlabelled):
            pairs = records.second_texts is not None
            if pairs != (self.task.texts == 2):
                found, wanted = "single texts", "two text columns"
                if pairs:
                    found, wanted = "pairs of texts", "one text column"
                raise InputError(
                    f"All data must be what the model takes. Received: {found} ({records.source}) "
                    f"for {self.task!r}. Name {wanted}."
                )
        if train.label_names != validation.label_names:
            raise InputError(
                "Training and validation records must have the same classes. Received: "
                f"{train.label_names} and {validation.label_names}. Pass label_names to "
                "ke.data.read_records."
            )
        for name in ("length", "max_length"):
            if getattr(settings, name) > self.tokenizer.max_length:
                raise InputError(
                    f"`{name}` may be at most the model's {self.tokenizer.max_length} tokens. "
                    f"Received: {getattr(settings, name)}. Give a smaller one."
                )
        self.settings = settings
        self.flavor = flavors.of(model)
        self.say = say or (lambda line: None)
        self.callbacks = callbacks or (lambda name: [])
        self.further = self._new(unlabelled)
        self.folder = RunFolder(directory, self._identity())
        self.seconds: dict[str, float] = {}
        self.trimmed: Any = None
        self.words: Any = None

    def _new(self, records, *known):
        """Return the texts that are not among those with labels or the known ones, once each."""
        seen = {x for part in (self.train, self.validation, *known) for x in part.examples()}
        new = []
        for number, example in enumerate(records.examples()):
            if example not in seen:
                seen.add(example)
                new.append(number)
        return records.take(new).without_labels()

    def _identity(self):
        return {
            "model": KerasTeacher(self.model).fingerprint(),
            "library": self.flavor.name,
            "task": self.task.name,
            "train": self.train.fingerprint,
            "validation": self.validation.fingerprint,
            "unlabelled": self.further.fingerprint,
            **self.settings.identity(),
        }

    # --- data --------------------------------------------------------------------------------

    def batches(self, records: Any, tokenizer: Tokenizer, **options: Any) -> Any:
        """Return records as batches of the task, with the settings of the run."""
        defaults = {
            "batch_size": self.settings.batch_size,
            "max_length": self.settings.max_length,
            "seed": self.settings.seed,
        }
        return self.task.batches(records, tokenizer, **{**defaults, **options})

    def held_out(self, tokenizer: Tokenizer) -> Any:
        """Return the validation records as batches."""
        options = {"training": False, "shuffle": False}
        return self.batches(self.validation, tokenizer, batch_size=64, **options)

    def to_predict(self) -> Any:
        """Return all texts to train on as batches, whose labels do not count."""
        texts = self.train.without_labels() + self.further
        return self.batches(texts, self.words, group_by_length=True)

    # --- phases ------------------------------------------------------------------------------

    def plan(self) -> CompressPlan:
        """Measure a few steps, and return what the run will do with its estimated minutes."""
        self.trim()
        return make_plan(self)

    def check(self, resume: bool = False) -> None:
        """Refuse a folder that is another run's, without writing anything.

        Args:
            resume: whether to continue a run that is there. Default: False.

        Raises:
            InputError: as for `open`.
        """
        size = 4 * _parameters(self.flavor, self.model)
        # Keras' export has all weights twice; a candidate in training has two moments for each,
        # and its checkpoint is written before the last one is removed.
        self.folder.check(resume, 0 if resume else (4 + 5 * len(self.settings.front)) * size)

    def open(self, resume: bool = False) -> None:
        """Own the folder of the run.

        Args:
            resume: whether to continue a run that is there. Default: False.

        Raises:
            InputError: the folder is another run's, or it holds no run, or one unexpectedly.
        """
        self.check(resume)
        self.folder.open()

    def close(self) -> None:
        """Give the folder of the run back."""
        self.folder.close()

    def measure_baselines(self) -> dict[str, Any]:
        """Write the float32 export by Keras and the int8 export of the teacher, and time both."""
        found = self.folder.read("teacher/teacher.json")
        if found is not None:
            return found
        with self._phase("baselines"):
            teacher = self.folder.path / "teacher"
            held_out = self.held_out(self.tokenizer)
            evaluation = self._evaluate(self.model, held_out)
            if evaluation.score <= 0:
                raise InputError(
                    "compress keeps a share of the model's score, which must be above 0. Received: "
                    f"{evaluation.metric} {evaluation.score:.4f} on {evaluation.examples:,} texts "
                    f"({self.validation.source}). Train the model longer first."
                )
            sample = next(iter(held_out))
            keras_export(self.model, teacher / "keras", features=sample[0])
            made = teacher / "int8" / "1"
            if not made.exists():
                self._export(self.model, self.tokenizer, made, "teacher, int8")
            times = self._bench({"keras": teacher / "keras", "int8": made}).targets
            report = json.loads((made / "report.json").read_text(encoding="utf-8"))
            found = {
                "metric": evaluation.metric,
                "score": evaluation.score,
                "interval": evaluation.interval,
                "evaluation": evaluation.to_dict(),
                "score_int8": report["evaluation"]["served"],
                "quantize": report["quantize"],
                "parameters": _parameters(self.flavor, self.model),
                "weight_bytes_int8": report["weight_bytes"],
                "bytes": times["keras"]["bytes"],
                "bytes_int8": times["int8"]["bytes"],
                "latency_ms": latency_of(times["keras"], self.settings.threads),
                "latency_ms_int8": latency_of(times["int8"], self.settings.threads),
            }
            self.folder.write("teacher/teacher.json", found)
        return found

    def trim(self) -> None:
        """Remove the tokens that the texts do not need, and make the altered copies."""
        if self.trimmed is not None:
            return
        ids = None
        if self.settings.min_frequency:
            try:
                texts = [
                    text
                    for records in (self.train, self.further)
                    for text in (*records.texts, *(records.second_texts or ()))
                ]
                ids, self.words = trim_vocabulary(
                    self.tokenizer, texts, min_frequency=self.settings.min_frequency
                )
                # Rare words have more tokens then, and must still fit.
                self.held_out(self.words)
                self.trimmed = shrink(self.model, vocabulary=ids).model
            except (InputError, ValueError) as error:
                self.say(f"The whole vocabulary is kept. {error}")
                ids = None
        if ids is None:
            self.words = self.tokenizer
            self.trimmed = plain_copy(self.model, next(iter(self.held_out(self.tokenizer))))
        self._compile(self.trimmed, steps=1, learning_rate=1e-6)
        if self.settings.copies:
            altered = augment_texts(
                self.train,
                self.words,
                embeddings=self.trimmed,
                copies=self.settings.copies,
                seed=self.settings.seed,
                **_ALTERATION,
            )
            self.further += self._new(altered.records, self.further)

    def choose(self) -> None:
        """Make an untrained candidate for each target; the reason is written where there is none.

        Raises:
            InputError: the target that is wanted cannot be reached; the message says what can.
        """
        teacher = self.measure_baselines()
        missing = [t for t in self.settings.targets() if not self._is_chosen(t)]
        if not missing:
            return
        with self._phase("candidates"):
            self.trim()
            data = self.batches(self.train, self.words).take(_SHRINK_BATCHES)
            latency = ExportLatency(
                # What the whole model was exported as is what this machine can verify.
                quantize=teacher["quantize"],
                batch=self.settings.batch,
                length=self.settings.length,
                threads=self.settings.threads,
                seconds=self.settings.seconds,
                baseline="keras",
            )
            for target in missing:
                try:
                    with self._warnings_said(target.label):
                        small, report = shrink(
                            self.trimmed,
                            data=data,
                            importance=self.settings.importance,
                            **_shrink_target(target, teacher, latency),
                        )
                except ValueError as error:
                    if target == self.settings.target:
                        raise InputError(
                            f"The target {target} cannot be reached. {error} The model's int8 "
                            f"export takes {teacher['latency_ms_int8']:.2f} ms and "
                            f"{teacher['bytes_int8']:,} bytes, Keras' float32 export "
                            f"{teacher['latency_ms']:.2f} ms and {teacher['bytes']:,} bytes. "
                            "These are kept in the folder: resume with another `target`."
                        ) from error
                    self._refuse(target, str(error))
                    continue
                facts = {
                    "target": str(target),
                    "layers": list(report.layers),
                    "sizes": {name: list(sizes) for name, sizes in report.sizes.items()},
                    "parameters": report.parameters,
                    "predicted_latency_ms": report.latency_ms,
                }
                if twin := self._twin(facts):
                    self._refuse(target, f"its sizes are those of the candidate for {twin}.")
                    continue
                self._save(small, self._candidate(target) / "shrunk", facts)
                self.say(f"{target.label}: {_sizes_text(facts)}")

    def cache_outputs(self, progress: Callable[[Iterable], Iterable] | None = None) -> TeacherCache:
        """Compute the teacher's outputs for all texts once.

        Args:
            progress: function of the batches that returns them again, to show the progress.
                Default: None.
        """
        self.trim()
        directory = self.folder.path / "teacher_outputs"
        with self._phase("teacher outputs"):
            data = self.to_predict()
            # Where it is refused, padding is computed, which takes longer.
            with suppress(ValueError):
                self.unpad(self.trimmed)
            return cache(self.trimmed, data if progress is None else progress(data), directory)

    def distil(self, target: Target, outputs: TeacherCache) -> None:
        """Train the candidate for a target; a training that was killed goes on where it stopped."""
        folder = self._candidate(target)
        if (folder / "trained").exists():
            return
        settings = self.settings
        with self._phase(f"distil {target.label}"):
            # Before the model, since Keras 3 draws the seeds of dropout layers when it makes them.
            self.flavor.keras.utils.set_random_seed(settings.seed)
            student, words = self._load_to_train(folder / "shrunk")
            data = self.batches(self._labelled_by(outputs), words, group_by_length=True)
            self._compile(student, data.stats.batches * settings.epochs, settings.learning_rate)
            terms = {name: getattr(settings, name) for name in _DISTILLATION}
            distill(student, outputs, **terms)
            try:
                self.unpad(student)
            except ValueError as error:
                self.say(f"Padding is computed. {error}")
            resume = Resume(
                folder / "training",
                every_steps=200,
                keep=1,
                settings={"target": str(target), **self.folder.identity},
                signals=(signal.SIGINT, signal.SIGTERM),
                verbose=0,
            )
            student.fit(
                data.repeat(),
                epochs=settings.epochs,
                steps_per_epoch=data.stats.batches,
                callbacks=[*self.callbacks(target.label), resume],
                shuffle=False,
                verbose=0,
            )
            distill(student, None)
            found = self._evaluate(student, self.held_out(words))
            facts = {**_facts_of(folder / "shrunk"), "score": found.score}
            self._save(student, folder / "trained", facts)
            shutil.rmtree(folder / "training", ignore_errors=True)
            score = shown(found.metric, found.score)
            self.say(f"{target.label}: {found.metric} {score} in float32")

    def export(self, target: Target) -> Path:
        """Export the trained candidate for a target as int8, and return the version's path."""
        folder = self._candidate(target)
        version = folder / "int8" / "1"
        if not version.exists():
            with self._phase(f"export {target.label}"):
                student, words = load(folder / "trained")
                self._export(student, words, version, target.label)
        return version

    def report(self) -> CompressReport:
        """Time all exports in turns, and write report.json and front.png."""
        teacher = self.measure_baselines()
        with self._phase("timing"):
            candidates = self.candidates()
            base = self.folder.path / "teacher"
            paths = {"keras": base / "keras", "int8": base / "int8" / "1"}
            paths |= {name: folder / "int8" / "1" for name, folder in candidates.items()}
            times = self._bench(paths)
        found = compress_report(
            self.folder.path,
            self.settings,
            teacher,
            times,
            {name: _result_of(folder) for name, folder in candidates.items()},
            self._refused(),
            seconds=self.seconds,
            unlabelled=len(self.further),
            train=len(self.train),
        )
        self.folder.write("report.json", found.to_dict())
        found.plot(self.folder.path / "front.png")
        return found

    def candidates(self) -> dict[str, Path]:
        """Return the folder of each candidate that was exported, by its target's label."""
        found = {}
        for folder in sorted((self.folder.path / "candidates").glob("*")):
            if (folder / "int8" / "1").exists():
                found[Target.of(_facts_of(folder / "shrunk")["target"])] = folder
        # From the easiest target to the hardest.
        order = sorted(found, key=lambda t: (t.name, t.value if t.name == "speedup" else -t.value))
        return {target.label: found[target] for target in order}

    def targets(self) -> list[Target]:
        """Return the targets that have a candidate, of this call's."""
        return [t for t in self.settings.targets() if (self._candidate(t) / "shrunk").exists()]

    # --- parts -------------------------------------------------------------------------------

    def unpad(self, model: Model) -> None:
        """Let a model compute real tokens only.

        Raises:
            ValueError: as for `ke.unpad`.
        """
        # The losses of tasks of tokens leave out those of padding.
        unpad(model, ignore_padding_outputs=self.task.head != "text")

    def _evaluate(self, model, held_out):
        return self.task.evaluate(model, held_out, self.label_names)

    def _candidate(self, target):
        return self.folder.path / "candidates" / target.folder

    def _is_chosen(self, target):
        """Whether there is a candidate, or a reason against one for a target that is a sideline."""
        folder = self._candidate(target)
        if (folder / "shrunk").exists():
            return True
        return (folder / _REFUSED).exists() and target != self.settings.target

    def _twin(self, facts):
        """Return the label of a candidate with the same sizes, or None."""
        for folder in (self.folder.path / "candidates").glob("*/shrunk"):
            other = _facts_of(folder)
            if all(other[name] == facts[name] for name in ("layers", "sizes")):
                return Target.of(other["target"]).label
        return None

    def _refuse(self, target, reason):
        self.folder.write(
            f"candidates/{target.folder}/{_REFUSED}", {"target": str(target), "reason": reason}
        )
        self.say(f"No candidate for {target.label}: {reason}")

    def _refused(self):
        found = {}
        for target in self.settings.targets():
            refused = self.folder.read(f"candidates/{target.folder}/{_REFUSED}")
            if refused is not None and not (self._candidate(target) / "shrunk").exists():
                found[target.label] = refused["reason"]
        return found

    def _compile(self, model, steps, learning_rate):
        keras = self.flavor.keras
        rate = warmup_linear(learning_rate, warmup_steps=steps // 10, total_steps=steps)
        model.compile(
            AdamW(rate, exclude=NO_DECAY, library=model),
            self.task.loss(keras),
            metrics=self.task.metrics(keras, max(1, len(self.train.label_names))),
            # XLA cannot compile the look-up of cached outputs.
            jit_compile=False,
        )

    def _load_to_train(self, folder):
        """Load a candidate in the precision of its training."""
        policies = self.flavor.keras.mixed_precision
        before = policies.global_policy()
        try:
            mixed_precision(self.settings.precision, library=self.flavor.name)
            return load(folder)
        finally:
            policies.set_global_policy(before)

    def _save(self, model, directory, facts):
        names = self.label_names
        save(model, self.words, directory, label_names=names, task=self.task, facts=facts)

    def _export(self, model, tokenizer, version, name):
        records = self.train.take(range(min(len(self.train), 32 * _CALIBRATION_BATCHES)))
        calibration = self.batches(records, tokenizer, batch_size=32)
        held_out = self.held_out(tokenizer)
        check_destination(version)
        with self._warnings_said(name):
            quantized_export(
                model,
                version,
                calibration=calibration,
                held_out=held_out,
                tokenizer=tokenizer,
                label_names=self.label_names,
                task=self.task.with_data(held_out),
                facts={"train_fingerprint": self.train.fingerprint, "seed": self.settings.seed},
            )

    @contextmanager
    def _warnings_said(self, name):
        """Say warnings of this package for users as lines about a candidate."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for line in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
            self.say(f"Warning, {name}: {line}")

    def _labelled_by(self, outputs):
        """Return the training records, and the other texts with what the teacher predicts."""
        if not len(self.further):
            return self.train
        found = self.task.pseudo_label(
            self.further,
            self.words,
            outputs.outputs,
            self.train.label_names,
            batch_size=self.settings.batch_size,
            max_length=self.settings.max_length,
        )
        return self.train + found

    def _vocabulary(self):
        return max(2, min(1000, (self.words.largest_id or 999) + 1))

    def _bench(self, paths):
        self.trim()
        return bench(
            paths,
            batches=[self.settings.batch],
            lengths=[self.settings.length],
            threads=self.settings.threads,
            seconds=self.settings.seconds,
            vocabulary=self._vocabulary(),
        )

    @contextmanager
    def _phase(self, name):
        begin = time.monotonic()
        self.say(f"{name} ...")
        yield
        self.seconds[name] = time.monotonic() - begin


def check_compresses(task: tasks.Task) -> tasks.Task:
    """Return a task, if compress takes it.

    Raises:
        InputError: it does not.
    """
    if not task.compresses:
        names = ", ".join(name for name in tasks.names() if tasks.get(name).compresses)
        raise InputError(
            f"compress takes models for the tasks {names}. Received: {task!r}. Make the model "
            "smaller with ke.shrink and train the smaller one with ke.distill, if its blocks are "
            "known; export it with `quantize`."
        )
    return task


def _shrink_target(target, teacher, latency) -> dict[str, Any]:
    """Return the target and the measurement in the arguments of `ke.shrink`."""
    if target.name in ("speedup", "latency_ms"):
        return {target.name: target.value, "measure": latency}
    if target.name == "parameters":
        return {"parameters": int(target.value)}
    # The graph takes as much as that of the teacher at most, and the rest belongs to the weights.
    graph = teacher["bytes_int8"] - teacher["weight_bytes_int8"]
    each = teacher["weight_bytes_int8"] / teacher["parameters"]
    return {"parameters": max(1, int((target.value - graph) / each))}


def _parameters(flavor, model):
    return sum(int(np.prod(v.shape)) for v in flavor.weights(model))


def _facts_of(folder):
    manifest = json.loads((folder / "keras_efficient.json").read_text(encoding="utf-8"))
    return manifest["facts"]


def _result_of(folder):
    """Return what is known of an exported candidate."""
    report = json.loads((folder / "int8" / "1" / "report.json").read_text(encoding="utf-8"))
    facts = _facts_of(folder / "trained")
    return {
        **facts,
        "sizes_text": _sizes_text(facts),
        "score_float": facts["score"],
        "score": report["evaluation"]["served"],
        "quantize": report["quantize"],
        "directory": str(folder / "int8" / "1"),
    }


def _sizes_text(facts):
    """Return the sizes of a candidate in a few words."""
    after = {name: sizes[1] for name, sizes in facts["sizes"].items()}

    def shown(value):
        return f"{min(value)}-{max(value)}" if isinstance(value, list) else str(value)

    return (
        ", ".join(
            f"{shown(after[name])} {word}"
            for name, word in (
                ("layers", "layers"),
                ("hidden", "wide"),
                ("feed_forward", "neurons"),
            )
            if name in after
        )
        + f", {facts['parameters'] / 1e6:.2f}M parameters"
    )
