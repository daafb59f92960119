"""Peak memory and time of training MiniLM with and without `ke.remat`.

    python benchmarks/remat.py [--rounds 3] [--batch-size 32] [--length 128] [--json FILE]

Each alternative trains in a process of its own, so that its peak is the whole process'; they take
turns, and the table has medians, relative to the plain step of the same library. AdamW, float32.
"Of a step" is the peak less that of the same process before its first step: activations, gradients,
the optimizer's state and the compiled graph.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

#: name -> (library, remat?, microbatch size)
ALTERNATIVES = {
    f"{library}: {name}": (library, remat, microbatch)
    for library in ("keras", "tf_keras")
    for name, remat, microbatch in (
        ("plain", False, None),
        ("remat", True, None),
        ("accumulate, 4 microbatches", False, 4),
        ("accumulate, 4 microbatches, remat", True, 4),
    )
}
STEPS = 3


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(name, batch_size, length):
    """Train in this process; print the peak and the time of a step."""
    import numpy as np
    import tensorflow as tf

    import keras_efficient as ke

    library, remat, microbatches = ALTERNATIVES[name]
    model, tokenizer = ke.models.load(ke.data.demo_model(), library=library)
    if remat:
        ke.remat(model)
    if microbatches:
        ke.accumulate(model, microbatches)
    keras = ke.flavor.of(model).keras
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(ke.optimizers.AdamW(1e-5, library=model), loss, jit_compile=False)
    ids = np.random.default_rng(0).integers(1000, 20000, (batch_size, length)).astype("int32")
    values = {"ids": ids, "mask": np.ones_like(ids), "segments": np.zeros_like(ids)}
    features = {name: values[role] for role, name in tokenizer.inputs.items()}
    labels = np.arange(batch_size) % 2
    data = tf.data.Dataset.from_tensors((features, labels)).repeat()
    before = peak()
    model.fit(data, steps_per_epoch=1, verbose=0)
    start = time.perf_counter()
    model.fit(data, steps_per_epoch=STEPS, verbose=0)
    seconds = (time.perf_counter() - start) / STEPS
    result = {"peak_bytes": peak(), "step_bytes": peak() - before, "seconds_per_step": seconds}
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--json")
    parser.add_argument("--one", choices=ALTERNATIVES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one, arguments.batch_size, arguments.length)
    sizes = ["--batch-size", str(arguments.batch_size), "--length", str(arguments.length)]
    results = {name: [] for name in ALTERNATIVES}
    for _ in range(arguments.rounds):
        for name, runs in results.items():
            command = [sys.executable, __file__, "--one", name, *sizes]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-2000:]}")
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    table = {}
    print(f"{'relative to plain':<40} {'peak':>6} {'of a step':>10} {'time':>6}   peak")
    for name, runs in results.items():
        base = results[f"{name.partition(':')[0]}: plain"]
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        table[name] = {
            key: value / statistics.median(run[key] for run in base)
            for key, value in medians.items()
        }
        ratios = table[name]
        print(
            f"{name:<40} {ratios['peak_bytes']:>6.2f} {ratios['step_bytes']:>10.2f} "
            f"{ratios['seconds_per_step']:>6.2f}   {medians['peak_bytes'] / 2**20:.0f} MiB"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(table, file, indent=2)


if __name__ == "__main__":
    main()
