"""What the training step of `ke.accumulate` costs: time, memory, and bytes between replicas.

    python benchmarks/step.py [--library both] [--rounds 10] [--parts abcd] [--quick] [--json FILE]

MiniLM in float32, texts of 64 tokens, microbatches of 8 examples, k per update.

a. Time per example for k = 1, 4, 16, relative to plain `fit` of batch 8, one update each:
   `ke.accumulate`, plain `fit` of the same large batch, and other ways to accumulate.
b. `ke.accumulate` with one microbatch per batch, relative to plain `fit` of the same batch.
c. Peak memory of an update from 16 microbatches, relative to plain `fit` of batch 8. Each
   alternative has a process of its own.
d. What two replicas send each other: calls of all-reduce and bytes of gradients handed to it, per
   update, against plain `fit` that takes k small steps. Counted at run time, on the movie reviews;
   the second replica is a logical device.

In a and b the alternatives are in one process and take turns, in alternating order; a figure is the
median of the rounds' ratios. Both clocks are shown: the wall's and the processor's (of all threads
of the process), which another program on the machine disturbs less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import accumulation

LENGTH, SLICE = accumulation.LENGTH, accumulation.MICROBATCH
LIBRARIES = ("keras", "tf_keras")
TITLES = {
    "a": "time per example, relative to plain batch 8",
    "b": "one microbatch per batch, relative to plain fit",
    "c": "peak memory of 16 microbatches, relative to plain batch 8",
    "d": "all-reduces of two replicas, per update of k microbatches each",
}


def plain(library):
    return accumulation.keras_model() if library == "keras" else accumulation.tf_keras_model()


def others(library, k):
    """The other way to accumulate: name, (model, names of features)."""
    if library == "keras":
        return "gradient_accumulation_steps", accumulation.keras_model(
            gradient_accumulation_steps=k
        )
    accumulation.BATCH = k * SLICE
    return "gradient-accumulator", accumulation.gradient_accumulator()


class Racer:
    """A model that trains blocks of steps, and says how long they took."""

    def __init__(self, model_and_names, flavor):
        import numpy as np
        import tensorflow as tf

        self.model, names = model_and_names
        rng = np.random.default_rng(0)
        ids = rng.integers(1000, 20000, (16 * SLICE, LENGTH)).astype("int32")
        features = dict(zip(names, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
        self.data = tf.data.Dataset.from_tensor_slices((features, rng.integers(0, 2, len(ids))))
        # Exclude the creation of the iterator, but include the rest of `fit`.
        self.times = []
        clock = flavor.keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: self.times.append(now()),
            on_epoch_end=lambda *_: self.times.append(now()),
        )
        self.callbacks = [clock]

    def run(self, batch, steps):
        """(wall's seconds, processor's seconds) of `steps` steps."""
        self.times.clear()
        data = self.data.batch(batch).repeat()
        self.model.fit(data, steps_per_epoch=steps, verbose=0, callbacks=self.callbacks)
        return [stop - start for start, stop in zip(*self.times, strict=True)]


def now():
    return time.perf_counter(), time.process_time()


def race(lanes, rounds, baseline):
    """{name: median ratios to the baseline}, of lanes {name: (racer, batch, steps)}."""
    for racer, batch, _ in lanes.values():
        racer.run(batch, 1)
        racer.run(batch, 1)
    ratios = {name: [] for name in lanes}
    for number in range(rounds):
        order = list(lanes) if number % 2 == 0 else list(lanes)[::-1]
        seconds = {}
        for name in order:
            racer, batch, steps = lanes[name]
            seconds[name] = [s / (batch * steps) for s in racer.run(batch, steps)]
        for name, own in seconds.items():
            ratios[name].append([s / b for s, b in zip(own, seconds[baseline], strict=True)])
        done = {n: [round(r, 3) for r in rs[-1]] for n, rs in ratios.items()}
        print(f"round {number}: {done}", file=sys.stderr, flush=True)
    return {
        name: dict(
            zip(("wall", "processor"), map(quartiles, zip(*pairs, strict=True)), strict=True)
        )
        for name, pairs in ratios.items()
    }


def quartiles(ratios):
    if len(ratios) < 2:
        return [ratios[0]] * 3
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return [middle, low, high]


def times(library, parts, rounds, ks):
    """Parts a and b, in this process."""
    import keras_efficient as ke

    flavor = ke.flavor.get(library)
    base, result = Racer(plain(library), flavor), {}
    if "b" in parts:
        model, names = plain(library)
        single, result["b"] = Racer((ke.accumulate(model, 1), names), flavor), {}
        for batch in (8, 32):
            lanes = {"plain": (base, batch, 3), "ours": (single, batch, 3)}
            result["b"][f"batch {batch}"] = race(lanes, rounds, "plain")["ours"]
        del single, model
    if "a" in parts:
        ours = Racer(accumulation.ours(plain(library)), flavor)
        lanes = {"plain, batch 8": (base, SLICE, 4)}
        for k in ks:
            lanes[f"ours, {k} x 8"] = (ours, k * SLICE, max(1, 4 // k))
            if k > 1:
                name, other = others(library, k)
                lanes[f"{name}, {k} x 8"] = (Racer(other, flavor), SLICE, k)
                lanes[f"plain, batch {8 * k}"] = (base, k * SLICE, 1)
        result["a"] = race(lanes, max(2, rounds // 2), "plain, batch 8")
    return result


def memory_alternatives():
    """{name: (how to make it, examples per step)}, for part c."""
    alternatives = {}
    for library in LIBRARIES:
        alternatives[f"{library}: plain, batch 8"] = (lambda lib=library: plain(lib), SLICE)
        alternatives[f"{library}: ours, 16 x 8"] = (
            lambda lib=library: accumulation.ours(plain(lib)),
            16 * SLICE,
        )
        name = "gradient_accumulation_steps" if library == "keras" else "gradient-accumulator"
        alternatives[f"{library}: {name}, 16 x 8"] = (
            lambda lib=library: others(lib, 16)[1],
            SLICE,
        )
    return alternatives


def memory(name):
    """Part c, in this process."""
    accumulation.ALTERNATIVES, accumulation.BATCH = memory_alternatives(), 16 * SLICE
    accumulation.one(name)


def wire(library, ks):
    """Part d, in this process."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, halves)
    import keras_efficient as ke

    records, _ = ke.data.split(
        ke.data.read_records(ke.data.demo_reviews()), validation=1605, stratify=False
    )
    _, tokenizer = ke.models.load(ke.data.demo_model(), library=library)
    strategy, calls, result = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), [], {}
    # Every all-reduce of this strategy passes here, with a list of (values of the replicas, ...).
    reduce = strategy.extended._batch_reduce_to

    def counting(reduce_op, pairs, options):
        dense = sparse = tf.constant(0, tf.int64)
        for value, _ in pairs:
            tensor = strategy.experimental_local_results(value)[0]
            if isinstance(tensor, tf.IndexedSlices):
                for part in (tensor.values, tensor.indices):
                    sparse += part.dtype.size * tf.size(part, tf.int64)
            else:
                dense += tensor.dtype.size * tf.size(tensor, tf.int64)
        tf.py_function(lambda *counts: calls.append(list(map(int, counts))), [dense, sparse], [])
        return reduce(reduce_op, pairs, options)

    strategy.extended._batch_reduce_to = counting
    for name in ("plain", "ours"):
        with strategy.scope():
            model, _ = plain(library)
        if name == "ours":
            accumulation.ours((model, None))
        parameters = 4 * sum(v.shape.num_elements() for v in model.trainable_variables)
        for k in ks:
            steps = k if name == "plain" else 1
            examples = 2 * SLICE * k
            data = ke.data.text(
                records.take(range(examples)),
                tokenizer,
                batch_size=examples // steps,
                max_length=LENGTH,
                buckets=[LENGTH],
                shuffle=False,
            )
            calls.clear()
            model.fit(data.repeat(), steps_per_epoch=steps, verbose=0, shuffle=False)
            total = sum(map(sum, calls))
            result[f"{name}, k = {k}"] = {
                "all_reduces": len(calls),
                "dense_bytes": sum(dense for dense, _ in calls),
                "sparse_bytes": sum(rows for _, rows in calls),
                "of_parameters": total / parameters,
                "of_parameters_per_example": total / parameters / examples,
            }
    return result


# --- the table of each part ----------------------------------------------------------------------


def show_times(table):
    print(f"{'':<46} {'wall':>22} {'processor':>22}")
    for name, clocks in table.items():
        cells = (f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in clocks.values())
        print(f"{name:<46} {' '.join(f'{cell:>22}' for cell in cells)}")


def show_memory(table):
    for name, ratio in table.items():
        print(f"{name:<54} {ratio:>6.2f}")


def show_wire(table):
    print(f"{'':<24} {'calls':>6} {'dense':>10} {'rows':>10} {'/parameters':>12} {'/example':>9}")
    for name, row in table.items():
        print(
            f"{name:<24} {row['all_reduces']:>6} {row['dense_bytes'] / 1e6:>7.1f} MB "
            f"{row['sparse_bytes'] / 1e6:>7.2f} MB {row['of_parameters']:>12.3f} "
            f"{row['of_parameters_per_example']:>9.4f}"
        )


SHOW = {"a": show_times, "b": show_times, "c": show_memory, "d": show_wire}


def in_a_process(*options):
    """What this script prints last, in a process of its own, with these hidden options."""
    environment = dict(os.environ)
    if any("tf_keras" in option for option in options):
        # gradient-accumulator imports `tf.keras` and needs Keras 2.
        environment["TF_USE_LEGACY_KERAS"] = "1"
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default="both", choices=(*LIBRARIES, "both"))
    parser.add_argument("--rounds", type=int, default=10, help="of part b; half as many of a")
    parser.add_argument("--parts", default="abcd", help="which of them")
    parser.add_argument("--quick", action="store_true", help="2 rounds, k = 1 and 4")
    parser.add_argument("--json")
    parser.add_argument("--times", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=memory_alternatives(), help=argparse.SUPPRESS)
    parser.add_argument("--wire", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds, ks = (2, (1, 4)) if arguments.quick else (arguments.rounds, (1, 4, 16))
    parts = arguments.parts
    if arguments.memory:
        return memory(arguments.memory)
    if arguments.times:
        return print(json.dumps(times(arguments.times, parts, rounds, ks)))
    if arguments.wire:
        return print(json.dumps(wire(arguments.wire, ks)))

    libraries = LIBRARIES if arguments.library == "both" else (arguments.library,)
    same = ["--rounds", str(arguments.rounds), "--parts", parts]
    same += ["--quick"] if arguments.quick else []
    results = {part: {} for part in parts}
    for library in libraries:
        found = {}
        if "a" in parts or "b" in parts:
            found = in_a_process("--times", library, *same)
        if "c" in parts:
            names = [name for name in memory_alternatives() if name.startswith(f"{library}:")]
            peaks = {name: in_a_process("--memory", name)["peak_bytes"] for name in names}
            base = peaks[f"{library}: plain, batch 8"]
            found["c"] = {name.partition(": ")[2]: peak / base for name, peak in peaks.items()}
        if "d" in parts:
            found["d"] = in_a_process("--wire", library, *same)
        for part, table in found.items():
            results[part] |= {f"{library}: {name}": row for name, row in table.items()}
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(results, file, indent=2)
    for part, table in results.items():
        print(f"\n{part}. {TITLES[part]}\n")
        SHOW[part](table)


if __name__ == "__main__":
    main()
