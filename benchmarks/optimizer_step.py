"""One update of MiniLM's weights by AdamW: the library's own, and this package's before and now.

    python benchmarks/optimizer_step.py [--rounds 15] [--threads 1] [--tune] [--json FILE]

The variables have MiniLM's shapes (22.7 million parameters), and the gradients are random: dense,
but for the table of tokens, of which 32 texts of 30 tokens touch rows. No model is run. The
optimizers of a library take turns in a process of its own; the table shows medians of processor and
wall time. "ours, unfused" decays, sums repeated rows and has the library compute the update, as
this package did before. `--tune` calls `ke.tune_process()` first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIBRARIES = ("keras", "tf_keras")
VOCABULARY, WIDTH, HEADS, LAYERS, TEXTS, TOKENS = 30522, 384, 12, 6, 32, 30


def shapes():
    """Return the shape of each of MiniLM's variables, the table of tokens first."""
    norm = [(WIDTH,), (WIDTH,)]
    projection = [(WIDTH, HEADS, WIDTH // HEADS), (HEADS, WIDTH // HEADS)]
    layer = [*projection * 3, (HEADS, WIDTH // HEADS, WIDTH), (WIDTH,), *norm]
    layer += [(WIDTH, 4 * WIDTH), (4 * WIDTH,), (4 * WIDTH, WIDTH), (WIDTH,), *norm]
    head = [(WIDTH, WIDTH), (WIDTH,), (WIDTH, 2), (2,)]
    return [(VOCABULARY, WIDTH), (512, WIDTH), (2, WIDTH), *norm, *layer * LAYERS, *head]


def optimizers(library):
    """Return functions that make the optimizers to compare, all with the same numbers."""
    import keras_efficient as ke
    from keras_efficient.optimizers._mixins import make_optimizer_class

    flavor = ke.flavor.get(library)
    numbers = {"weight_decay": 0.01, "epsilon": 1e-6}
    unfused = make_optimizer_class(flavor, "UnfusedAdamW", "AdamW", None)
    return {
        f"{library}: its own AdamW": lambda: flavor.keras.optimizers.AdamW(5e-5, **numbers),
        f"{library}: ours, unfused": lambda: unfused(5e-5, **numbers),
        f"{library}: ours": lambda: ke.optimizers.AdamW(5e-5, library=library, **numbers),
    }


def step_of(make, library, tf):
    """Return a function that makes an update from values and rows of the gradients."""
    import keras_efficient as ke

    create = ke.flavor.get(library).keras.Variable if library == "keras" else tf.Variable
    made = [create(tf.random.normal(shape, stddev=0.05)) for shape in shapes()]
    optimizer = make()
    optimizer.build(made)
    dense = [tf.random.normal(shape, stddev=0.01) for shape in shapes()[1:]]

    @tf.function
    def update(values, rows):
        table = tf.IndexedSlices(values, rows, tf.constant(shapes()[0]))
        optimizer.apply_gradients(zip([table, *dense], made, strict=True))

    return update


def measure(library, rounds, threads, tune):
    """Return `{name: {"processor_ms": [...], "wall_ms": [...]}}` of a library's optimizers."""
    if tune:
        import keras_efficient as ke

        print(ke.tune_process(), file=sys.stderr)
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    steps = {name: step_of(make, library, tf) for name, make in optimizers(library).items()}
    found = {name: {"processor_ms": [], "wall_ms": []} for name in steps}
    rng = np.random.default_rng(0)
    for number in range(rounds + 3):
        # Frequent words come first, as in a vocabulary.
        rows = np.exp(rng.uniform(0, np.log(VOCABULARY), TEXTS * TOKENS)).astype("int32") - 1
        values = tf.constant(rng.normal(0, 0.01, (len(rows), WIDTH)), tf.float32)
        for name, step in steps.items():
            clocks = time.process_time(), time.perf_counter()
            step(values, tf.constant(rows))
            spent = time.process_time() - clocks[0], time.perf_counter() - clocks[1]
            if number >= 3:  # The first traces; the memory of the next two is new.
                for clock, seconds in zip(found[name].values(), spent, strict=True):
                    clock.append(1000 * seconds)
    return found


def cpu():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{model}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tune", action="store_true", help="call ke.tune_process() first")
    parser.add_argument("--json")
    parser.add_argument("--measure", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        options = arguments.rounds, arguments.threads, arguments.tune
        return print(json.dumps(measure(arguments.measure, *options)))
    results = {}
    for library in LIBRARIES:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", library]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results |= json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{cpu()}; {arguments.threads} threads; {'tuned' if arguments.tune else 'not tuned'}")
    print(f"{'milliseconds':<28} {'processor':>10} {'wall':>8} {'of its own':>11}")
    for name, clocks in results.items():
        processor, wall = (statistics.median(times) for times in clocks.values())
        own = results[f"{name.partition(':')[0]}: its own AdamW"]["processor_ms"]
        ratio = statistics.median(own) / processor
        print(f"{name:<28} {processor:>10.1f} {wall:>8.1f} {ratio:>10.2f}x")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"cpu": cpu(), **results}, indent=2))


if __name__ == "__main__":
    main()
