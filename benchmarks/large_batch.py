"""Fine-tune MiniLM on movie reviews with large batches: accuracy for the same examples seen.

    python benchmarks/large_batch.py [--limit 4096] [--epochs 1] [--seeds 2] [--json FILE]

Batch 32 is the baseline. Larger batches are microbatches of 32 accumulated by `ke.accumulate`;
the schedule grows from 32 to 256 with `ke.callbacks.BatchSizeSchedule`. Every method sees the same
reviews, and warms up over the first tenth of its updates. Then its rate falls to 0 on a line; that
of the schedule stays, for there the batch grows instead.

Peak rates are chosen with the first seed, by the accuracy on 500 reviews that are in neither the
training nor the test set: two are tried for batch 32; from its best the others' follow by the usual
rules, times √k / 2, √k or k for k times the batch; for LAMB, whose rate is another quantity
(relative to the weights), four are tried. The accuracy reported is on the 1,605 reviews that
benchmarks/finetune.py takes too, the mean over seeds. The time per example is the processor's, of
all its threads, without the first two updates, which trace the graph.

Each method has a process of its own. With --json, finished runs are kept in FILE, and not made
again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

SLICE, LONGEST, VALIDATION, TEST = 32, 32, 500, 1605

#: method -> (batch, optimizer)
METHODS = {
    "AdamW": (32, "AdamW"),
    "AdamW, larger batch": (256, "AdamW"),
    "AdamW, very large batch": (1024, "AdamW"),
    "LAMB, very large batch": (1024, "LAMB"),
    "AdamW, growing batch": (None, "AdamW"),
}
BASE, GROWING = "AdamW", "AdamW, growing batch"


def grid(method, base):
    """The peak rates to try: floats, given the best one of batch 32."""
    batch, optimizer = METHODS[method]
    if method == BASE:
        return [1e-4, 2e-4]
    if method == GROWING:
        return [base]
    if optimizer == "LAMB":
        return [1e-3, 3e-3, 1e-2, 4e-2]
    k = batch / SLICE
    return [base * math.sqrt(k) / 2, base * math.sqrt(k), base * k]


def growth(batches):
    """{update: batches per update} in which the batch grows from 1 to 8 microbatches.

    Half of the batches make an update each, then a quarter in twos, an eighth in fours, the rest in
    eights.
    """
    plan, update, done = {}, 0, 0
    for microbatches, share in ((1, 1 / 2), (2, 3 / 4), (4, 7 / 8), (8, 1)):
        plan[update] = microbatches
        updates = round((share * batches - done) / microbatches)
        update, done = update + updates, done + updates * microbatches
    return plan, update + (done < batches)


def schedule(ke, peak, updates, constant):
    """Up on a line in the first tenth of the updates, then down on one, or level."""
    warm = max(1, round(updates / 10))
    rest = ke.schedules.linear(peak, total_steps=updates - warm)
    if constant:
        rest = ke.schedules.constant(peak)
    # The ramp does not start at 0, which would waste one of six updates.
    return ke.schedules.warmup(rest, warm, start=peak / (warm + 1))


def many(method, wanted, limit, epochs):
    """Train in this process, from the start for each (rate, seed) wanted; print each's result."""
    import keras

    import keras_efficient as ke

    precision = ke.mixed_precision("auto")
    records = ke.data.read_records(ke.data.demo_reviews())
    records, test = ke.data.split(records, validation=TEST, stratify=False)
    records, validation = ke.data.split(records, validation=VALIDATION, stratify=False)
    train = records.take(range(min(limit, len(records))))
    model, tokenizer = ke.models.load(ke.data.demo_model(), library="keras")
    flavor = ke.flavor.of(model)
    batch, optimizer = METHODS[method]
    fed = batch or SLICE
    if fed > SLICE:
        ke.accumulate(model, microbatch_size=SLICE)
    model.compile(
        getattr(ke.optimizers, optimizer)(0.0, exclude=ke.optimizers.NO_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)

    class Run(keras.callbacks.Callback):
        """Sets the rate, and takes the processor's time after the first two updates."""

        def on_train_batch_begin(self, batch, logs=None):
            made = self.model.optimizer.iterations.numpy()
            self.model.optimizer.learning_rate = float(self.rates(made))

        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() <= 2:
                self.start, self.skipped = time.process_time(), batch + 1

    for rate, seed in wanted:
        keras.utils.set_random_seed(seed)
        fresh, _ = ke.models.load(ke.data.demo_model(), library="keras", seed=seed)
        for variable, value in zip(flavor.state(model), flavor.state(fresh), strict=True):
            variable.assign(value)
        for variable in model.optimizer.variables:
            variable.assign(0 * variable)
        data = ke.data.text(train, tokenizer, batch_size=fed, max_length=LONGEST, seed=seed)
        updates, growing, run = data.stats.batches * epochs, [], Run()
        if batch is None:
            plan, updates = growth(updates)
            growing = [ke.callbacks.BatchSizeSchedule(plan)]
        run.rates = schedule(ke, rate, updates, constant=batch is None)
        model.fit(data, epochs=epochs, callbacks=[*growing, run], verbose=0, shuffle=False)
        seconds = time.process_time() - run.start
        result = {
            "rate": rate,
            "seed": seed,
            "seconds_per_example": seconds / (len(train) * epochs - run.skipped * fed),
            "updates": int(model.optimizer.iterations.numpy()),
            "precision": str(precision),
        }
        for name, part in (("validation", validation), ("test", test)):
            part = ke.data.text(part, tokenizer, batch_size=64, max_length=LONGEST)
            result[name] = float(model.evaluate(part, verbose=0, return_dict=True)["accuracy"])
        print(json.dumps(result), flush=True)


class Runs:
    """Runs made once each, kept in a file."""

    def __init__(self, arguments):
        self.file, self.results = arguments.json, {}
        self.size = ["--limit", str(arguments.limit), "--epochs", str(arguments.epochs)]
        if self.file and os.path.exists(self.file):
            with open(self.file) as file:
                self.results = json.load(file)["runs"]

    def __call__(self, method, wanted):
        """The results of a method for a list of (rate, seed); None for one that failed."""
        keys = {
            f"{method}, rate {r:.3g}, seed {s}, {' '.join(self.size)}": (r, s) for r, s in wanted
        }
        missing = [pair for key, pair in keys.items() if key not in self.results]
        if missing:
            command = [sys.executable, __file__, "--many", method, json.dumps(missing)]
            with subprocess.Popen(
                [*command, *self.size], stdout=subprocess.PIPE, text=True
            ) as done:
                for line in done.stdout:
                    if not line.startswith("{"):
                        continue
                    print(f"{method}: {line}", end="", file=sys.stderr, flush=True)
                    result = json.loads(line)
                    pair = (result["rate"], result["seed"])
                    self.results[next(k for k, p in keys.items() if p == pair)] = result
                    self.save({})
        return [self.results.get(key) for key in keys]

    def save(self, table):
        if self.file:
            with open(self.file, "w") as file:
                json.dump({"table": table, "runs": self.results}, file, indent=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=4096, help="training examples")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--many", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.many:
        method, wanted = arguments.many
        return many(method, json.loads(wanted), arguments.limit, arguments.epochs)
    runs, best, results = Runs(arguments), {}, {}
    for method in METHODS:
        tried = runs(method, [(rate, 0) for rate in grid(method, best.get(BASE))])
        if any(tried):
            chosen = max(filter(None, tried), key=lambda run: run["validation"])
            best[method], results[method] = chosen["rate"], [chosen]
    for method, made in results.items():
        wanted = [(best[method], seed) for seed in range(1, arguments.seeds)]
        made.extend(filter(None, runs(method, wanted)))
    table, base = {}, None
    print(f"{'':<24} {'batch':>9} {'rate':>8} {'updates':>8} {'test accuracy':>22} {'time':>6}")
    for method, made in results.items():
        accuracies = [run["test"] for run in made]
        seconds = statistics.median(run["seconds_per_example"] for run in made)
        base = base or seconds
        row = {
            "batch": METHODS[method][0] or "32 to 256",
            "rate": best[method],
            "updates": made[0]["updates"],
            "accuracy": statistics.mean(accuracies),
            "accuracies": accuracies,
            "relative_time": seconds / base,
        }
        table[method] = row
        spread = f"{row['accuracy']:.1%} ({min(accuracies):.1%} to {max(accuracies):.1%})"
        print(
            f"{method:<24} {row['batch']:>9} {row['rate']:>8.2g} {row['updates']:>8} "
            f"{spread:>22} {row['relative_time']:>6.2f}"
        )
    runs.save(table)


if __name__ == "__main__":
    main()
