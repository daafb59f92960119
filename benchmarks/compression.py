"""Accuracy against bytes: pruned, quantized, clustered and parameter-efficiently tuned MiniLM.

    python benchmarks/compression.py [--seeds 3] [--only dense "2:4" ...] [--limit N] [--json FILE]

Movie reviews, sentiment, accuracy on the same 1,605 held-out reviews. All rows of a seed see the
same batches in the same order for the same number of updates, each in a process of its own:
"dense" trains `--epochs` epochs from the pretrained encoder; what is compressed while it trains
starts from the dense model after its first epoch and has the epochs that are left, so its budget is
the same; the post-training rows start from the finished dense model; the parameter-efficient rows
start from the pretrained encoder. Pruned rows are pruned at once by
`ke.compression.Reconstruction` on 256 training reviews, those "by magnitude" in the first fifth of
their updates (2:4: at once). Those that are "distilled" learn from the finished dense model, too:
its logits and hidden states.
Rates: 1e-4, falling to 0 (post-training: none); the pruned and the parameter-efficient rows have
the rates in `ROWS`. A figure is the median over seeds; differences to dense are medians of the
differences of a seed.

Bytes are those of all files of an export, with quantize="int8-weights" if the weights are
quantized. Runs are kept in `--folder` and not repeated: remove it to measure again.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BATCH, LONGEST, RATE = 32, 96, 1e-4
DISTILLATION = {"alpha": 0.5, "divergence": "mse", "hidden": 1.0}
#: name: (start, learning rate, method applied to the model).
ROWS = {
    "dense": ("pretrained", RATE, None),
    "50% unstructured": ("tuned", 2 * RATE, lambda ke, m, s: rebuilt(ke, m, s, 0.5)),
    "70% unstructured": ("tuned", 2 * RATE, lambda ke, m, s: rebuilt(ke, m, s, 0.7)),
    "80% unstructured": ("tuned", 2 * RATE, lambda ke, m, s: rebuilt(ke, m, s, 0.8)),
    "90% unstructured": ("tuned", 2 * RATE, lambda ke, m, s: rebuilt(ke, m, s, 0.9)),
    "2:4": ("tuned", 2 * RATE, lambda ke, m, s: rebuilt(ke, m, s, pattern="2:4")),
    "80%, distilled": ("tuned", 2 * RATE, lambda ke, m, s: distilled(ke, m, s, 0.8)),
    "2:4, distilled": ("tuned", 2 * RATE, lambda ke, m, s: distilled(ke, m, s, pattern="2:4")),
    "50% by magnitude": ("tuned", 2 * RATE, lambda ke, m, s: ke.prune(m, 0.5, **s)),
    "80% by magnitude": ("tuned", 2 * RATE, lambda ke, m, s: ke.prune(m, 0.8, **s)),
    "2:4 by magnitude": ("tuned", 2 * RATE, lambda ke, m, s: ke.prune(m, pattern="2:4")),
    "8-bit QAT": ("tuned", RATE, lambda ke, m, s: quantize(ke, m, s, 8)),
    "4-bit QAT": ("tuned", RATE, lambda ke, m, s: quantize(ke, m, s, 4)),
    "32 clusters": ("tuned", RATE, lambda ke, m, s: ke.cluster(m, clusters=32)),
    "80% + 8-bit QAT": ("tuned", 2 * RATE, lambda ke, m, s: both(ke, m, s)),
    "8-bit PTQ": ("dense", None, lambda ke, m, s: calibrate(ke, m, s, 8)),
    "4-bit PTQ, groups of 32": ("dense", None, lambda ke, m, s: calibrate(ke, m, s, 4)),
    "LoRA r=8": ("pretrained", 1e-3, lambda ke, m, s: ke.lora(m, rank=8)),
    "AdaLoRA r=8": ("pretrained", 6e-3, lambda ke, m, s: adalora(ke, m, s)),
    "adapters 32": ("pretrained", 1e-3, lambda ke, m, s: ke.adapters(m, size=32)),
    "prefix 16": ("pretrained", 3e-2, lambda ke, m, s: ke.prefix_tuning(m, length=16)),
    "BitFit": ("pretrained", 2e-3, lambda ke, m, s: ke.bitfit(m)),
}


class Schedule(dict):
    """Arguments of `ke.prune`, and what other rows need besides."""

    batches, teacher = (), None


def rebuilt(ke, model, schedule, sparsity=None, **pattern):
    criterion = ke.compression.Reconstruction(schedule.batches)
    return ke.prune(model, sparsity, criterion=criterion, **pattern)


def distilled(ke, model, schedule, sparsity=None, **pattern):
    report = rebuilt(ke, model, schedule, sparsity, **pattern)
    ke.distill(model, schedule.teacher(), **DISTILLATION)
    return report


def quantize(ke, model, schedule, bits):
    return ke.quantize_aware(model, weight_bits=bits, calibration=schedule.batches)


def both(ke, model, schedule):
    # The word embedding is half of the model, so it is pruned too where bytes are compared.
    report = rebuilt(ke, model, schedule, 0.8)
    ke.prune(model, 0.6, layers="token_embedding|word_embeddings/weight", **schedule)
    quantize(ke, model, schedule, 8)
    return report


def calibrate(ke, model, schedule, bits):
    fine = {} if bits == 8 else {"group_size": 32, "method": "reconstruction"}
    return ke.calibrate(model, schedule.batches, weight_bits=bits, **fine)


def adalora(ke, model, schedule):
    end = schedule["end_step"]
    return ke.adalora(model, rank=8, begin_step=end // 2, end_step=3 * end)


def one(row, seed, library, limit, epochs, folder):
    """Run a row in this process; returns its result."""
    import keras_efficient as ke

    start, peak, change = ROWS[row]
    ke.mixed_precision("auto", library=library)
    records = ke.data.read_records(ke.data.demo_reviews())
    train, test = ke.data.split(records, validation=1605, stratify=False)
    train = train.take(range(min(limit, len(train))))
    model, tokenizer = ke.models.load(ke.data.demo_model(), library=library, seed=seed)
    keras = ke.flavor.of(model).keras
    keras.utils.set_random_seed(seed)
    first = 1 if start == "tuned" else 0
    data = ke.data.text(
        train, tokenizer, batch_size=BATCH, max_length=LONGEST, seed=seed, first_epoch=first
    )
    test = ke.data.text(test, tokenizer, batch_size=64, max_length=LONGEST, shuffle=False)
    per_epoch = data.stats.batches
    total = per_epoch * epochs

    def kept(name):
        return str(folder / f"{name} {library} {seed}.weights.h5")

    if start != "pretrained":
        model.load_weights(kept(start))
    updates = total - first * per_epoch
    schedule = Schedule(begin_step=0, end_step=int(0.2 * updates))
    schedule.batches = list(data.take(8))

    def finished():
        dense, _ = ke.models.load(ke.data.demo_model(), library=library, seed=seed)
        dense.load_weights(kept("dense"))
        ke.unpad(dense)
        return dense

    schedule.teacher = finished
    report = None if change is None else change(ke, model, schedule)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if peak is None:
        model.compile(loss=loss, metrics=["accuracy"])
    else:
        warmup = total // 10
        if first:
            # Continue at the learning rate that the dense model has at this point.
            rate = ke.schedules.linear(peak * updates / (total - warmup), total_steps=updates)
        else:
            rate = ke.schedules.warmup_linear(peak, warmup_steps=warmup, total_steps=total)
        model.compile(
            ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=library),
            loss,
            metrics=["accuracy"],
            jit_compile=False,
        )
        ke.accumulate(model, microbatch_size=BATCH)
        after_first = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: epoch or model.save_weights(kept("tuned"))
        )
        model.fit(
            data,
            epochs=epochs - first,
            callbacks=[after_first] if row == "dense" else [],
            verbose=0,
            shuffle=False,
        )
        if row == "dense":
            model.save_weights(kept("dense"))
        ke.distill(model, None)
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    found = ke.summary(model)
    high = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return {
        "accuracy": float(accuracy),
        "bytes": exported(ke, model, next(iter(test))),
        "sparsity": found.sparsity,
        "trainable": found.trainable,
        "parameters": found.parameters,
        "peak_memory": int(high) * 1024,
        "updates": updates if peak else 0,
        "report": str(report).splitlines()[0],
    }


def exported(ke, model, sample):
    """Bytes of all files of an export."""
    from keras_efficient.compression._fake_quant import FakeQuant
    from keras_efficient.parametrize._parametrized_layer import transforms

    form = "int8-weights" if transforms(model, FakeQuant) else None
    with tempfile.TemporaryDirectory() as scratch:
        return ke.export(
            model, f"{scratch}/model", sample=sample, quantize=form, latency=False
        ).bytes


def plot(table, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.transforms import Bbox

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    shown = {
        name: (row["bytes_ratio"], 100 * row["accuracy"])
        for name, row in table.items()
        if row["trainable_share"] > 0.5 or row["bytes_ratio"] < 0.9
    }
    axes.scatter(*zip(*shown.values(), strict=True), s=28, color="#3b82f6")
    axes.set(
        xscale="log",
        xlim=(0.08, 1.6),
        xticks=[0.1, 0.2, 0.5, 1],
        xticklabels=["0.1", "0.2", "0.5", "1"],
        xlabel="bytes on disk, relative to the dense float32 weights",
        ylabel="accuracy on 1,605 held-out reviews, %",
        title="MiniLM on movie reviews",
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.draw_without_rendering()
    places = axes.transData.transform(list(shown.values()))
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
    for name, point in shown.items():
        # Place the label next to its point where it overlaps no other point or label.
        for x, y in ((7, 0), (-7, 0), (7, 9), (-7, 9), (7, -9), (-7, -9)):
            text = axes.annotate(
                name,
                point,
                (x, y),
                textcoords="offset points",
                fontsize=8,
                va="center",
                ha="left" if x > 0 else "right",
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or (x, y) == (-7, -9):
                taken.append(box)
                break
            text.remove()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=3200, help="training examples")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), help="rows [all]; dense is needed")
    parser.add_argument("--folder", type=Path, default=Path("runs/compression"))
    parser.add_argument("--plot", type=Path, help="PNG of accuracy against bytes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.library}-{arguments.limit}-{arguments.epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        row, seed = arguments.one[0], int(arguments.one[1])
        result = one(row, seed, arguments.library, arguments.limit, arguments.epochs, folder)
        (folder / f"{row} {seed}.json").write_text(json.dumps(result))
        return
    names = [n for n in ROWS if not arguments.only or n in arguments.only or n == "dense"]
    for seed in range(arguments.seeds):
        for name in names:
            if not (folder / f"{name} {seed}.json").exists():
                command = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(seed)]
                subprocess.run(command, check=True)
                result = json.loads((folder / f"{name} {seed}.json").read_text())
                print(f"{name}, seed {seed}: {result['accuracy']:.2%}", file=sys.stderr)
    table = tabulate(folder, names, arguments.seeds)
    print(
        f"{'':<24} {'accuracy':>8} {'to dense':>8} {'zeros':>6} {'trains':>7} {'files':>6} "
        f"{'memory':>6}"
    )
    for name, row in table.items():
        print(
            f"{name:<24} {row['accuracy']:>8.2%} {100 * row['difference']:>+8.2f} "
            f"{row['sparsity']:>6.1%} {row['trainable_share']:>7.2%} {row['bytes_ratio']:>6.3f} "
            f"{row['memory_ratio']:>6.2f}"
        )
    if arguments.plot:
        plot(table, arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2))


def tabulate(folder, names, seeds):
    """Medians over seeds, by row."""
    runs = {
        name: [json.loads((folder / f"{name} {s}.json").read_text()) for s in range(seeds)]
        for name in names
    }
    dense = runs["dense"]
    float32 = 4 * dense[0]["parameters"]

    def median(name, value):
        return statistics.median(value(run, dense[s]) for s, run in enumerate(runs[name]))

    return {
        name: {
            "accuracy": median(name, lambda run, _: run["accuracy"]),
            "difference": median(name, lambda run, full: run["accuracy"] - full["accuracy"]),
            "sparsity": median(name, lambda run, _: run["sparsity"]),
            "trainable_share": median(name, lambda run, _: run["trainable"] / run["parameters"]),
            "bytes_ratio": median(name, lambda run, _: run["bytes"] / float32),
            "memory_ratio": median(name, lambda r, full: r["peak_memory"] / full["peak_memory"]),
            "accuracies": [run["accuracy"] for run in runs[name]],
        }
        for name in names
    }


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
