"""Fine-tune MiniLM with ours, with plain Keras, and with PyTorch, which a user may choose instead.

    make peers PEERS="[--library both] [--threads 1 2] [--rounds 5] [--json FILE]"
    python benchmarks/peers.py [--quick] [--only REGEX] [--environment FOLDER | --python FILE]
    python benchmarks/peers.py --accuracy [--seeds 1] [--only REGEX]
    python benchmarks/peers.py --first-update [--rounds 3]

The contenders have the same tokens of the same movie reviews, the same weights to start from,
batches of 32, dropout 0.1, AdamW (5e-5 with linear decay, weight decay 0.01 but not of biases and
normalisation, no clipping), and the same number of updates:

- plain `fit` with Keras' own AdamW, batches padded to 128 tokens, or to the batch's longest text;
- Hugging Face's `Trainer` on PyTorch with `group_by_length=True` and fused AdamW;
- the same `Trainer` with glibc's allocator set as `ke.tune_process()` sets it;
- a bare PyTorch loop with the same batches and fused AdamW;
- ours: `ke.unpad`, `ke.optimizers.AdamW`, `ke.data.text(..., group_by_length=True)`;
- ours after `ke.tune_process()`.

Each has a process of its own with the given number of threads, and they take turns: a turn is an
epoch over the same reviews, by a `fit` or a `Trainer` that waits between its epochs. With padding
to 128 tokens all batches take equally long, and a turn is a fifth of the updates. The first turn is
not counted. A ratio is the median over the rounds of the `Trainer`'s time by the contender's. The
two libraries come after each other, for memory, each with PyTorch.

`--accuracy` trains each contender on all 9,000 reviews once, one after another, and shows the
accuracy on the other 1,605; this takes an hour or more. `--first-update` shows the time from a
loaded model to the end of its first update, of 8 texts; its last column that from the start of the
process.

PyTorch is installed into `.venv-peers` on first use, at the versions of
`benchmarks/peers-requirements.txt`: about 3 GB on x86, with the GPU's libraries.
"""

import argparse
import json
import os
import random
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from optimizer_step import cpu

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "peers-requirements.txt"
LIBRARIES = ("keras", "tf_keras")
BATCH, LONGEST, RATE, DECAY, EPSILON = 32, 128, 5e-5, 0.01, 1e-6
HELD_OUT = 1605
TRAINER, LOOP = "PyTorch: HF Trainer", "PyTorch: bare loop"
TUNED_TRAINER = "PyTorch: HF Trainer, allocator tuned"
STATIC, DYNAMIC = "plain fit, padded to 128", "plain fit, padded to longest"
OURS, TUNED = "ours", "ours, ke.tune_process()"
#: As the environment variable GLIBC_TUNABLES.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}"
    for name in ("mmap_max=0", f"trim_threshold={2**31 - 1}", f"top_pad={64 << 20}")
)
#: The ways to make a first update.
FIRST = ("plain", "ke.accumulate(model, 1)", "ke.unpad", "ke.unpad, ke.optimizers.AdamW")


# --- a contender, in a process of its own ---------------------------------------------------------


class Turns:
    """Waits for a line on the standard input, and reports the time that the turn took."""

    def __init__(self):
        # Whatever a library prints goes to the standard error.
        self.reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.is_first = True

    def begin(self, *_, **__):
        if self.is_first:
            self.report(ready=True)
            self.is_first = False
        if not sys.stdin.readline():
            raise SystemExit("the benchmark has ended")
        self.started = time.process_time(), time.perf_counter()

    def end(self, *_, **__):
        processor, wall = time.process_time(), time.perf_counter()
        self.report(
            processor=processor - self.started[0],
            wall=wall - self.started[1],
            process=processor,
            peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        )

    def report(self, **facts):
        print(json.dumps(facts), file=self.reports, flush=True)


def run_keras(task, turns):
    import keras_efficient as ke

    if task["name"] == TUNED:
        print(ke.tune_process(), file=sys.stderr)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(task["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(task["threads"])
    library = task["library"]
    flavor = ke.flavor.get(library)
    flavor.keras.utils.set_random_seed(task["seed"])
    ke.mixed_precision(
        "mixed_bfloat16" if task["precision"] == "bfloat16" else "float32", library=library
    )
    model, tokenizer = ke.models.load(task["model"], library=library, seed=task["seed"])
    if task["name"] in FIRST:
        return first_update(task, turns, model, tokenizer)
    if task["name"] in (OURS, TUNED):
        records, _ = reviews()
        data = ke.data.text(
            records.take(range(len(task["train"]))),
            tokenizer,
            batch_size=BATCH,
            max_length=LONGEST,
            seed=task["seed"],
            group_by_length=True,
        )
        compile_model(model, task, ours=True)
        print(ke.unpad(model), file=sys.stderr)
    else:
        data = plain_batches(task, tokenizer, LONGEST if task["name"] == STATIC else None)
        compile_model(model, task)
    callback = flavor.keras.callbacks.LambdaCallback(
        on_epoch_begin=turns.begin, on_epoch_end=turns.end
    )
    model.fit(
        data.repeat(),
        epochs=task["epochs"],
        steps_per_epoch=task["updates"],
        callbacks=[callback],
        shuffle=False,
        verbose=0,
    )
    if task["test"]:
        test = ke.data.text(reviews()[1], tokenizer, batch_size=64, max_length=LONGEST)
        right = 0
        for features, labels in test:
            outputs = model(features, training=False)
            logits = getattr(outputs, "logits", outputs)
            right += int(tf.reduce_sum(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, "int32")))
        turns.report(accuracy=right / HELD_OUT)


def plain_batches(task, tokenizer, length):
    """Return shuffled batches as a user of `tf.data` makes them, padded to `length` if given."""
    import tensorflow as tf

    def features(ids, label):
        kinds = {"ids": ids, "mask": tf.ones_like(ids), "segments": tf.zeros_like(ids)}
        return {name: kinds[kind] for kind, name in tokenizer.inputs.items()}, label

    ids, labels = zip(*task["train"], strict=True)
    data = tf.data.Dataset.from_tensor_slices((tf.ragged.constant(ids, tf.int32), list(labels)))
    data = data.shuffle(len(ids), seed=task["seed"]).map(features)
    shapes = {name: [length] for name in tokenizer.inputs.values()}, []
    return data.padded_batch(BATCH, shapes).prefetch(tf.data.AUTOTUNE)


def compile_model(model, task, ours=False):
    import keras_efficient as ke

    flavor = ke.flavor.of(model)
    keras = flavor.keras
    rate = keras.optimizers.schedules.PolynomialDecay(RATE, task["epochs"] * task["updates"], 0.0)
    numbers = {"weight_decay": DECAY, "epsilon": EPSILON}
    if ours:
        exclude = ke.optimizers.NO_DECAY
        optimizer = ke.optimizers.AdamW(rate, exclude=exclude, library=model, **numbers)
    else:
        optimizer = keras.optimizers.AdamW(rate, **numbers)
        never = "|".join(ke.optimizers.NO_DECAY)
        optimizer.exclude_from_weight_decay(
            [v for v in model.trainable_variables if re.search(never, flavor.path(v))]
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)


def first_update(task, turns, model, tokenizer):
    import keras_efficient as ke

    data = plain_batches(task, tokenizer, None).unbatch().take(8).batch(8)
    turns.begin()
    compile_model(model, task, ours="AdamW" in task["name"])
    if "ke.accumulate" in task["name"]:
        ke.accumulate(model, 1)
    if "ke.unpad" in task["name"]:
        ke.unpad(model)
    model.fit(data.repeat(), steps_per_epoch=1, shuffle=False, verbose=0)
    turns.end()


def run_torch(task, turns):
    import torch

    torch.set_num_threads(task["threads"])
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.set_seed(task["seed"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        task["model"], num_labels=2
    )
    collate = transformers.DataCollatorWithPadding(
        transformers.AutoTokenizer.from_pretrained(task["model"])
    )
    rows = [{"input_ids": ids, "labels": label} for ids, label in task["train"]]
    train = train_by_loop if task["name"] == LOOP else train_by_trainer
    train(task, turns, model, rows, collate, task["precision"] == "bfloat16")
    if task["test"]:
        rows = [{"input_ids": ids, "labels": label} for ids, label in task["test"]]
        model.eval()
        right = 0
        with torch.no_grad():
            for batch in torch.utils.data.DataLoader(rows, 64, collate_fn=collate):
                labels = batch.pop("labels")
                right += int((model(**batch).logits.argmax(-1) == labels).sum())
        turns.report(accuracy=right / len(rows))


def train_by_trainer(task, turns, model, rows, collate, bfloat16):
    import transformers

    class Turn(transformers.TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            turns.begin()

        def on_epoch_end(self, *_, **__):
            turns.end()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=task["epochs"],
            per_device_train_batch_size=BATCH,
            group_by_length=True,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            optim="adamw_torch_fused",
            weight_decay=DECAY,
            adam_epsilon=EPSILON,
            max_grad_norm=0,
            seed=task["seed"],
            bf16=bfloat16,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model, arguments, collate, train_dataset=rows, callbacks=[Turn()]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def train_by_loop(task, turns, model, rows, collate, bfloat16):
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = [len(row["input_ids"]) for row in rows]
    sampler = LengthGroupedSampler(BATCH, lengths=lengths)
    batches = torch.utils.data.DataLoader(rows, BATCH, sampler=sampler, collate_fn=collate)
    # Biases and normalisation's parameters are vectors.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=EPSILON, fused=True)
    total = task["epochs"] * task["updates"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    model.train()
    for _ in range(task["epochs"]):
        turns.begin()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        turns.end()


# --- the parent -----------------------------------------------------------------------------------


class Contender:
    """A process that trains when it is told to."""

    def __init__(self, task, python, folder):
        file = Path(folder) / f"{random.getrandbits(64):x}.json"
        file.write_text(json.dumps(task))
        threads = str(task["threads"])
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        if task["name"] == TUNED_TRAINER:
            environment["GLIBC_TUNABLES"] = ALLOCATOR
        self.process = subprocess.Popen(
            [python, __file__, "--contender", file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.name, self.examples = task["name"], task["examples"]
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def turn(self):
        """Return what a turn took, times in milliseconds per example."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = self.read()
        for clock in ("processor", "wall"):
            found[clock] *= 1000 / self.examples
        return found

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def reviews():
    """Return the training and the held-out reviews."""
    import keras_efficient as ke

    records = ke.data.read_records(ke.data.demo_reviews())
    return ke.data.split(records, validation=HELD_OUT, stratify=False)


def tokenized():
    """Return `(token ids, label)` of the training and of the held-out reviews."""
    import keras_efficient as ke

    tokenizer = ke.data.Tokenizer.from_directory(ke.data.demo_model(), inputs=ke.data.KERASHUB)
    parts = []
    for records in reviews():
        ids, _, _ = tokenizer.encode_and_count(records.texts, LONGEST)
        pairs = zip(ids, records.labels, strict=True)
        parts.append([(list(map(int, row)), int(label)) for row, label in pairs])
    return parts


def contenders(library, task, only):
    """Return the tasks of a library and of PyTorch, by name."""
    tasks = {name: {**task, "name": name} for name in (TRAINER, TUNED_TRAINER, LOOP)}
    for name in (STATIC, DYNAMIC, OURS, TUNED):
        tasks[f"{library}: {name}"] = {**task, "name": name, "library": library}
    return {name: one for name, one in tasks.items() if name == TRAINER or re.search(only, name)}


def race(tasks, rounds, start):
    """Return `{name: reports of the rounds}` of tasks that take turns."""
    running = {}
    try:
        for name, task in tasks.items():
            running[name] = start(task)
            warm = running[name].turn()
            print(f"{name}: first turn {warm['wall']:.1f} ms", file=sys.stderr, flush=True)
        found = {name: [] for name in running}
        for number in range(rounds):
            for name in list(running)[:: 1 if number % 2 == 0 else -1]:
                found[name].append(running[name].turn())
            done = {name: round(reports[-1]["processor"], 1) for name, reports in found.items()}
            print(f"round {number}: {done}", file=sys.stderr, flush=True)
    finally:
        for contender in running.values():
            contender.close()
    return found


def compare(arguments, rows, start):
    """The contenders' times, `{case: {name: reports}}`."""
    updates, rounds = arguments.updates, arguments.rounds
    results = {}
    for threads in arguments.threads:
        for precision in precisions():
            for library in arguments.libraries:
                task = {
                    "threads": threads,
                    "precision": precision,
                    "seed": 0,
                    "updates": updates,
                    "examples": updates * BATCH,
                    "epochs": rounds + 1,
                    "train": rows[0][: updates * BATCH],
                    "test": None,
                }
                tasks = contenders(library, task, arguments.only)
                if (static := f"{library}: {STATIC}") in tasks:
                    fewer = max(1, updates // 5)
                    tasks[static] |= {"updates": fewer, "examples": fewer * BATCH}
                case = f"{library}, {precision}, {threads} thread{'s' * (threads > 1)}"
                results[case] = race(tasks, rounds, start)
                show_times(case, results[case])
    return results


def precisions():
    """Return the precisions in which this CPU computes products."""
    if re.search(r"\b(avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text()):
        return ["float32", "bfloat16"]
    print("bfloat16 is left out: this CPU has neither avx512_bf16 nor amx_bf16", flush=True)
    return ["float32"]


def show_times(case, found):
    print(f"\n{case}: milliseconds per example, and speed relative to {TRAINER}\n")
    columns = ("processor", "wall", "speed by processor", "by wall", "peak memory")
    print(f"{'':<40} {columns[0]:>9} {columns[1]:>7} {columns[2]:>22} {columns[3]:>8} {columns[4]}")
    for name, reports in found.items():
        medians, ratios = [], []
        for clock in ("processor", "wall"):
            own = [report[clock] for report in reports]
            pairs = zip(found[TRAINER], own, strict=True)
            medians.append(statistics.median(own))
            ratios.append(quartiles([report[clock] / t for report, t in pairs]))
        (middle, low, high), (wall, _, _) = ratios
        peak = max(report["peak_bytes"] for report in reports) / 2**30
        print(
            f"{name:<40} {medians[0]:>9.1f} {medians[1]:>7.1f} "
            f"{f'{middle:.2f} ({low:.2f} to {high:.2f})':>22} {wall:>8.2f} {peak:>7.1f} GiB",
            flush=True,
        )


def quartiles(ratios):
    if len(ratios) < 2:
        return [ratios[0]] * 3
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return [middle, low, high]


def accuracies(arguments, rows, start):
    """Accuracy after one epoch over all training reviews, `{name: reports of the seeds}`."""
    results = {}
    updates = -(-len(rows[0]) // BATCH)
    for library in arguments.libraries:
        for seed in range(arguments.seeds):
            task = {
                "threads": arguments.threads[0],
                "precision": "float32",
                "seed": seed,
                "updates": updates,
                "examples": len(rows[0]),
                "epochs": 1,
                "train": rows[0],
                "test": rows[1],
            }
            for name, one in contenders(library, task, arguments.only).items():
                if len(results.get(name, ())) > seed:
                    continue  # PyTorch, which ran with the first library.
                contender = start(one)
                report = contender.turn() | contender.read()
                contender.close()
                results.setdefault(name, []).append(report)
                print(f"{name}, seed {seed}: {report}", file=sys.stderr, flush=True)
    print(
        f"\naccuracy on {HELD_OUT} reviews after {updates} updates; ms of processor per example\n"
    )
    for name, reports in results.items():
        accuracy, processor = (
            statistics.median(report[key] for report in reports)
            for key in ("accuracy", "processor")
        )
        print(f"{name:<40} {accuracy:>8.2%} {processor:>8.1f}", flush=True)
    return results


def first_updates(arguments, rows, start):
    """Seconds until the first update, `{library: {name: reports}}`."""
    results = {}
    for library in arguments.libraries:
        results[library] = found = {name: [] for name in FIRST}
        task = {
            "library": library,
            "threads": arguments.threads[0],
            "precision": "float32",
            "seed": 0,
            "updates": 100,
            "examples": 1000,  # So that milliseconds per example are seconds.
            "epochs": 1,
            "train": rows[0][:BATCH],
            "test": None,
        }
        for number in range(arguments.rounds):
            for name in FIRST[:: 1 if number % 2 == 0 else -1]:
                contender = start({**task, "name": name})
                found[name].append(contender.turn())
                contender.close()
                seconds = found[name][-1]["processor"]
                print(f"{library}, {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
        print(f"\n{library}: seconds to the first update\n")
        print(f"{'':<34} {'processor':>10} {'relative':>9} {'wall':>6} {'process':>8}")
        for name, reports in found.items():
            ratio = statistics.median(
                own["processor"] / base["processor"]
                for own, base in zip(reports, found[FIRST[0]], strict=True)
            )
            processor, wall, process = (
                statistics.median(report[clock] for report in reports)
                for clock in ("processor", "wall", "process")
            )
            print(f"{name:<34} {processor:>10.1f} {ratio:>9.2f} {wall:>6.1f} {process:>8.1f}")
    return results


def torch_python(arguments):
    """Return a Python that has PyTorch, installed first if it is not there."""
    if arguments.python:
        return arguments.python
    folder = Path(arguments.environment)
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing PyTorch into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    return python


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default="both", choices=(*LIBRARIES, "both"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, help="default 5, and 3 of --first-update")
    parser.add_argument("--updates", type=int, default=25, help="of a turn")
    parser.add_argument("--only", default="", help="contenders whose names match, and the Trainer")
    parser.add_argument(
        "--quick", action="store_true", help="1 thread, 2 rounds of 10 updates, --accuracy after 20"
    )
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--seeds", type=int, default=1, help="of --accuracy")
    parser.add_argument("--first-update", action="store_true")
    parser.add_argument("--environment", default=HERE.parent / ".venv-peers", help="for PyTorch")
    parser.add_argument("--python", help="a Python that has PyTorch, instead of --environment")
    parser.add_argument("--json")
    parser.add_argument("--contender", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        task = json.loads(arguments.contender.read_text())
        return (run_keras if "library" in task else run_torch)(task, Turns())
    if arguments.quick:
        arguments.threads, arguments.rounds, arguments.updates = [1], 2, 10
    arguments.rounds = arguments.rounds or (3 if arguments.first_update else 5)
    both = arguments.library == "both"
    arguments.libraries = LIBRARIES if both else (arguments.library,)
    import keras_efficient as ke

    torch = None if arguments.first_update else torch_python(arguments)
    rows, model = tokenized(), str(ke.data.demo_model())
    if arguments.quick:
        rows[0] = rows[0][: 20 * BATCH]
    command = shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])
    facts = {"cpu": cpu(), "command": command, "load_before": os.getloadavg()[0]}
    print(f"{facts['cpu']}; load {facts['load_before']:.1f}\n{command}", flush=True)
    with tempfile.TemporaryDirectory() as folder:

        def start(task):
            python = sys.executable if "library" in task else torch
            return Contender({**task, "model": model}, python, folder)

        run = compare
        if arguments.accuracy or arguments.first_update:
            run = accuracies if arguments.accuracy else first_updates
        results = run(arguments, rows, start)
    facts["load_after"] = os.getloadavg()[0]
    print(f"\nload at the end {facts['load_after']:.1f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({**facts, "results": results}, indent=2))


if __name__ == "__main__":
    main()
