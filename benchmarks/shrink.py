"""Smaller students of a fine-tuned MiniLM: accuracy against speed and bytes, and baselines.

    python benchmarks/shrink.py [--quick] [--seeds N] [--data NAME] [--json FILE] [--plot [FILE]]

A teacher of six blocks is fine-tuned. For each target, such as "10x", `ke.shrink` searches a
student whose int8 export is that many times faster at 8 texts of 64 tokens than Keras' own float32
export of the teacher, as measured on this machine. The student starts from the teacher's weights,
learns from the teacher's cached outputs on the training texts, without `--quick` also on altered
copies of them, and is calibrated and exported as int8. Its vocabulary is that of the training
texts, without tokens that occur once. Nothing else differs between targets, seeds and data sets.
Held-out texts are used for the final accuracies alone.

The baselines have the same sizes as the student of their target, but for the last one:

- "without a teacher": the same start, trained on the labels of the training texts.
- "first layers": the first blocks, and the neurons with the largest weights; trained on labels and
  logits of the training texts, as DistilBERT is.
- "magnitude": evenly spaced blocks and the neurons with the largest weights, trained on labels.
- "3 layers": every second block with all its neurons, trained on labels.

All of them see the same number of texts, counting repetitions, and are exported in the same way.

`--quick` has one seed, the targets 5x and 10x, and baselines for 10x; else there are three seeds,
2x, 3x, 5x, 10x and 20x, and baselines for 5x and 10x. `--data` is "reviews" (10,605 movie reviews,
1,605 of them held out), "products" or "tweets" (3,708 and 4,200 texts of the same archive, 1,000
held out; the label is the sign of the mean rating), or a file for `ke.data.read_records`, of which
15% are held out.

Accuracies and bytes are those of the int8 exports, medians over seeds; the teacher's accuracy is
that of its float32 model. Times are those of the exports of the first seed, in one interleaved run
of `ke.bench`. The JSON has {"teacher_accuracy": …, "students": {"5x": {"accuracy": …, "speedup":
{"1x64": …, "8x64": …, "32x64": …}, "bytes_ratio": bytes on disk / (4 · the teacher's parameters),
"accuracies": one per seed, "sizes": …}, "10x": …}, "baselines": {"first layers, 10x": the same, …},
"cpu", "threads", "seeds", "data", "held_out": number of texts}.

Each model is trained in a process of its own. Nothing is kept, unless `--folder` names a folder, in
which a second run goes on where the first one stopped.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import serving

LONGEST, BATCH = serving.LONGEST, serving.BATCH
PLOT = Path(__file__).parent.parent / "docs" / "images" / "shrink.png"
#: Cases of the JSON, and of the report of `ke.bench`.
CASES = {f"{batch}x64": f"batch {batch}, length 64" for batch in (1, 8, 32)}

TEACHER = {"epochs": 2, "rate": 1e-4}
RATE = 4e-4
#: Texts that each student sees, and altered copies of each training text.
TEXTS, COPIES = {True: 54_000, False: 108_000}, {True: 0, False: 4}
#: Tokens that the training texts have less often are not part of the students' vocabulary.
MIN_FREQUENCY = 2
ALTERATION = {"replace": 0.2, "delete": 0.1}
#: What students learn from the teacher.
RECIPE = {"alpha": 0.0, "divergence": "mse"}


@dataclass(frozen=True)
class Row:
    """One of the models that are compared with the teacher.

    Attributes:
        target: the student whose sizes it has, such as "10x"; or None for half of the blocks.
        blocks: "searched", "first" or "even".
        importance: how neurons are chosen, as in `ke.shrink`.
        terms: arguments of `ke.distill`, or None for no teacher.
        altered: whether it also learns from altered texts.
    """

    target: str | None
    blocks: str = "searched"
    importance: str = "reconstruction"
    terms: dict | None = None
    altered: bool = False


def rows(quick):
    """(students, baselines), each {name: Row}."""
    targets = ("5x", "10x") if quick else ("2x", "3x", "5x", "10x", "20x")
    students = {target: Row(target, terms=RECIPE, altered=True) for target in targets}
    baselines = {}
    for target in ("10x",) if quick else ("5x", "10x"):
        logits = {"alpha": 0.5, "temperature": 2.0}
        baselines[f"without a teacher, {target}"] = Row(target)
        baselines[f"first layers, {target}"] = Row(target, "first", "magnitude", logits)
        baselines[f"magnitude, {target}"] = Row(target, "even", "magnitude")
    baselines["3 layers"] = Row(None, "even")
    return students, baselines


def records_of(name):
    """Training and held-out texts."""
    import keras_efficient as ke

    if name == "reviews":
        return serving.reviews()
    if name in ("products", "tweets"):
        return ke.data.split(rated(name), validation=1000, stratify=False)
    return ke.data.split(ke.data.read_records(name), validation=0.15, stratify=False)


def rated(source):
    """Texts of the archive that the movie reviews are from, labelled as those are."""
    import keras_efficient as ke

    records = ke.tasks.get("regression").read(ke.data.demo_ratings(source), label_column="rating")
    labels = ["positive" if rating > 0 else "negative" for rating in records.labels]
    return ke.data.Records.of(records.texts, labels, source=source)


class Run:
    """One seed of the benchmark. Its parts are run in processes of their own.

    Args:
        arguments: those of the command line.
        seed: int.
    """

    def __init__(self, arguments, seed):
        self.data, self.quick, self.limit, self.seed = (
            *(arguments.data, arguments.quick, arguments.limit),
            seed,
        )
        self.folder = arguments.folder / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        students, baselines = rows(arguments.quick)
        self.targets, self.rows = list(students), students | baselines

    @classmethod
    def quick_one(cls, folder):
        """The run that `--quick --folder FOLDER` left, for other benchmarks."""
        folder = folder / "reviews-quick-all"
        arguments = argparse.Namespace(data="reviews", quick=True, limit=None, folder=folder)
        run = cls(arguments, seed=0)
        run.read()
        return run

    def do(self, part):
        """Run a part in this process."""
        import keras_efficient as ke

        ke.tune_process()
        ke.mixed_precision("float32")
        self.read()
        known = {"teacher": self.fine_tune, "sizes": self.search}
        result = known[part]() if part in known else self.student(self.rows[part])
        self.file(part).write_text(json.dumps(result))

    def read(self):
        """Read the texts."""
        self.train, self.held_out = (
            part if self.limit is None else part.take(range(min(self.limit, len(part))))
            for part in records_of(self.data)
        )

    def file(self, part):
        return self.folder / f"{part}.json"

    def result(self, part):
        return json.loads(self.file(part).read_text())

    # --- the parts

    def fine_tune(self):
        """Train the teacher. Keep its weights, Keras' own export of it, and its outputs."""
        import keras_efficient as ke

        classes = len(self.train.label_names)
        model, tokenizer = ke.models.load(ke.data.demo_model(), num_labels=classes, seed=self.seed)
        seconds = self.fit(
            model,
            self.batches(self.train, tokenizer),
            TEACHER["epochs"] * len(self.train),
            TEACHER["rate"],
        )
        accuracy = self.accuracy(model, tokenizer)
        model.save(self.folder / "teacher.keras")
        model.export(self.folder / "keras_export", verbose=False)
        teacher, tokenizer = self.teacher()
        ke.unpad(teacher)
        batches = self.batches(self.with_altered(teacher, tokenizer), tokenizer, 64)
        ke.distillation.cache(teacher, batches, self.folder / "teacher_outputs")
        return {
            "accuracy": accuracy,
            "parameters": model.count_params(),
            "held_out": len(self.held_out),
            "seconds": seconds,
        }

    def search(self):
        """Find the sizes of the students, by latencies measured on this machine."""
        import keras_efficient as ke

        teacher, tokenizer = self.teacher()
        measure = ke.bench.ExportLatency("int8", batch=8, length=LONGEST, baseline="keras")
        found = {}
        for target in self.targets:
            log(f"sizes for {target} ...")
            _, report = ke.shrink(
                teacher,
                speedup=float(target[:-1]),
                measure=measure,
                data=self.batches(self.train, tokenizer).take(8).cache(),
                importance="reconstruction",
            )
            found[target] = {"layers": list(report.layers)}
            for size in ("feed_forward", "hidden"):
                before, after = report.sizes[size]
                if after != before:
                    found[target][size] = after
        return found

    def student(self, row):
        """Train a smaller model, and export it as int8."""
        import keras_efficient as ke

        teacher, tokenizer = self.teacher()
        few = self.batches(self.train, tokenizer).take(8).cache()
        sizes = self.sizes(row, len(ke.architecture.describe(teacher).blocks))
        needed = None if row.importance == "magnitude" else few
        model, report = ke.shrink(teacher, **sizes, data=needed, importance=row.importance)
        if row.terms is not None:
            ke.distill(model, self.folder / "teacher_outputs", **row.terms)
        records = self.with_altered(teacher, tokenizer) if row.altered else self.train
        texts = TEXTS[self.quick] if self.limit is None else 4 * self.limit
        seconds = self.fit(model, self.batches(records, tokenizer), texts, RATE)
        ke.distill(model, None)
        calibration = self.batches(self.train, tokenizer).take(8)
        ke.calibrate(model, calibration)
        made = ke.export(
            model,
            self.folder / "exports" / str(list(self.rows.values()).index(row)),
            sample=next(iter(calibration)),
            quantize="int8",
            # The loss of accuracy is what is measured here, whatever it is.
            evaluate=ke.exporters.Evaluation(self.tests(tokenizer), max_drop=1.0),
            latency=False,
        )
        return {
            "accuracy": made.evaluation["served"],
            "bytes": made.bytes,
            "directory": str(made.directory),
            "sizes": {name: after for name, (_, after) in report.sizes.items()},
            "blocks": report.layers,
            "seconds": seconds,
        }

    # --- what they share

    def teacher(self):
        """The teacher with the vocabulary of the training texts, and the tokenizer for it."""
        import keras

        import keras_efficient as ke

        whole = keras.saving.load_model(self.folder / "teacher.keras")
        _, tokenizer = ke.models.load(ke.data.demo_model(), seed=0)
        ids, tokenizer = ke.data.trim_vocabulary(
            tokenizer, self.train.texts, min_frequency=MIN_FREQUENCY
        )
        model, _ = ke.shrink(whole, vocabulary=ids)
        self.compile(model)
        return model, tokenizer

    def with_altered(self, teacher, tokenizer, copies=None):
        """The training texts, and altered copies of them with the same labels."""
        import keras_efficient as ke

        train, copies = self.train, COPIES[self.quick] if copies is None else copies
        if not copies:
            return train
        new = ke.data.augment_texts(
            train, tokenizer, embeddings=teacher, copies=copies, **ALTERATION
        )
        labels = [*train.labels, *train.labels[new.origins]]
        return ke.data.Records((*train.texts, *new.records.texts), labels, train.label_names)

    def sizes(self, row, blocks):
        """Arguments of `ke.shrink` for a row."""
        if row.target is None:
            return {"layers": blocks // 2}
        sizes = dict(self.result("sizes")[row.target])
        number = len(sizes["layers"])
        if row.blocks != "searched":
            # An integer means evenly spaced ones.
            sizes["layers"] = number if row.blocks == "even" else list(range(number))
        return sizes

    def batches(self, records, tokenizer, size=BATCH):
        import keras_efficient as ke

        return ke.data.text(
            records,
            tokenizer,
            batch_size=size,
            max_length=LONGEST,
            group_by_length=True,
            seed=self.seed,
        )

    def tests(self, tokenizer):
        """The held-out texts as batches."""
        import keras_efficient as ke

        return ke.data.text(
            self.held_out, tokenizer, batch_size=64, max_length=LONGEST, shuffle=False
        )

    def accuracy(self, model, tokenizer):
        """The accuracy of a compiled model on the held-out texts."""
        tests = self.tests(tokenizer)
        return model.evaluate(tests, verbose=0, return_dict=True)["accuracy"]

    def compile(self, model, **optimizer):
        import keras

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss=loss, metrics=["accuracy"], jit_compile=False, **optimizer)

    def fit(self, model, batches, texts, rate):
        """Train on a number of texts, counting repetitions; return the seconds."""
        import keras

        import keras_efficient as ke

        keras.utils.set_random_seed(self.seed)
        steps = max(1, texts // BATCH)
        schedule = ke.schedules.warmup_linear(rate, warmup_steps=steps // 10, total_steps=steps)
        optimizer = ke.optimizers.AdamW(schedule, exclude=ke.optimizers.NO_DECAY)
        self.compile(model, optimizer=optimizer)
        ke.unpad(model)
        start = time.perf_counter()
        model.fit(batches.repeat(), steps_per_epoch=steps, verbose=0, shuffle=False)
        return time.perf_counter() - start


def log(line):
    print(line, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 5x and 10x: 40 minutes")
    parser.add_argument("--seeds", type=int, help="number of seeds [3; quick: 1]")
    parser.add_argument("--data", default="reviews", help="reviews, products, tweets or a file")
    parser.add_argument("--limit", type=int, help="use so many texts for training and held out")
    parser.add_argument("--threads", type=int, default=1, help="of one operation, when timed [1]")
    parser.add_argument("--seconds", type=float, default=4.0, help="per model and case [4]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, nargs="?", const=PLOT, help=f"PNG [{PLOT}]")
    parser.add_argument("--folder", type=Path, help="keep the models here, and take them up")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        return Run(arguments, int(arguments.part[1])).do(arguments.part[0])
    with tempfile.TemporaryDirectory() as scratch:
        parent = (arguments.folder or Path(scratch)).absolute()
        name = arguments.data if not Path(arguments.data).suffix else Path(arguments.data).stem
        budget = "quick" if arguments.quick else "full"
        arguments.folder = parent / f"{name}-{budget}-{arguments.limit or 'all'}"
        runs = [Run(arguments, s) for s in range(arguments.seeds or (1 if arguments.quick else 3))]
        for run in runs:
            # The sizes belong to the machine, not to the seed.
            for part in ("teacher", *(["sizes"] if run is runs[0] else []), *run.rows):
                work(run, part, arguments, runs[0])
        measure(runs, arguments)


def work(run, part, arguments, first):
    """Run a part in a process of its own, unless it was run before."""
    if run is not first:
        run.file("sizes").write_text(first.file("sizes").read_text())
    if not run.file(part).exists():
        start = time.perf_counter()
        options = ["--data", run.data, "--folder", str(arguments.folder)]
        options += ["--quick"] * run.quick
        options += [] if run.limit is None else ["--limit", str(run.limit)]
        command = [sys.executable, __file__, *options, "--part", part, str(run.seed)]
        subprocess.run(command, check=True)
        accuracy = run.result(part).get("accuracy")
        shown = "" if accuracy is None else f"{accuracy:.2%}, "
        log(f"seed {run.seed}, {part}: {shown}{time.perf_counter() - start:.0f} s")


def measure(runs, arguments):
    """Time the exports of the first seed against each other, and show all results."""
    from keras_efficient.bench import bench

    first, threads = runs[0], arguments.threads
    paths = {"keras_export": first.folder / "keras_export"}
    paths |= {name: first.result(name)["directory"] for name in first.rows}
    report = bench(
        paths, batches=(1, 8, 32), lengths=(64,), threads=threads, seconds=arguments.seconds
    )
    speedup = report.speedup("keras_export")
    float32 = 4 * first.result("teacher")["parameters"]

    def figures(name):
        found = [run.result(name) for run in runs]
        return {
            "accuracy": statistics.median(f["accuracy"] for f in found),
            "speedup": {case: speedup[name][long] for case, long in CASES.items()},
            "bytes_ratio": statistics.median(f["bytes"] for f in found) / float32,
            "accuracies": [f["accuracy"] for f in found],
            "sizes": found[0]["sizes"],
        }

    students, baselines = rows(arguments.quick)
    teachers = [run.result("teacher") for run in runs]
    result = {
        "teacher_accuracy": statistics.median(t["accuracy"] for t in teachers),
        "teacher_accuracies": [t["accuracy"] for t in teachers],
        "students": {name: figures(name) for name in students},
        "baselines": {name: figures(name) for name in baselines},
        "cpu": report.cpu,
        "threads": threads,
        "seeds": len(runs),
        "data": arguments.data,
        "held_out": teachers[0]["held_out"],
    }
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(result, arguments.plot)


def show(result):
    teacher = result["teacher_accuracy"]
    print(
        f"{result['data']}, {result['held_out']:,} held-out texts, seeds: {result['seeds']}; "
        f"times: {result['cpu']}, threads: {result['threads']}"
    )
    print(f"{'':<24} {'accuracy':>8} {'of teacher':>10}", *(f"{c:>7}" for c in CASES), "  bytes")
    print(f"{'teacher, Keras export':<24} {teacher:>8.2%} {1:>10.1%}", *(f"{1:>6.1f}x",) * 3)
    for name, row in (result["students"] | result["baselines"]).items():
        times = (f"{row['speedup'][case]:>6.1f}x" for case in CASES)
        print(
            f"{name:<24} {row['accuracy']:>8.2%} {row['accuracy'] / teacher:>10.1%}",
            *times,
            f"{row['bytes_ratio']:>7.3f}",
        )


def plot(result, path):
    """Draw accuracy against speed and against bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    teacher = 100 * result["teacher_accuracy"]
    for axes, label, value in (
        (panels[0], "times faster than Keras' float32 export, 8 × 64", faster),
        (panels[1], "times fewer bytes than 4 per parameter", smaller),
    ):
        axes.axhline(teacher, color="0.3", linewidth=1)
        axes.axhline(0.99 * teacher, color="0.3", linewidth=1, linestyle=":")
        front = sorted((value(r), 100 * r["accuracy"]) for r in result["students"].values())
        axes.plot(*zip(*front, strict=True), "o-", color="#3b82f6", label="distilled students")
        kinds = dict.fromkeys(name.partition(",")[0] for name in result["baselines"])
        for kind, marker in zip(kinds, "sD^v", strict=False):
            found = [r for n, r in result["baselines"].items() if n.partition(",")[0] == kind]
            places = [(value(r), 100 * r["accuracy"]) for r in found]
            axes.scatter(*zip(*places, strict=True), marker=marker, color="0.5", label=kind)
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.3)
        ticks = [1, 2, 3, 5, 10, 20]
        axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
        axes.minorticks_off()
    panels[0].set_ylabel(f"accuracy on {result['held_out']:,} held-out texts, %")
    panels[0].annotate("teacher", (1, teacher), (0, 3), textcoords="offset points", fontsize=8)
    panels[0].annotate(
        "99% of it", (1, 0.99 * teacher), (0, 3), textcoords="offset points", fontsize=8
    )
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def faster(row):
    return row["speedup"]["8x64"]


def smaller(row):
    return 1 / row["bytes_ratio"]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
