"""Peak memory of one update from 256 reviews: plain batch 8 against every way to accumulate.

    python benchmarks/accumulation.py [--rounds 3] [--json FILE]

Each alternative trains MiniLM in a process of its own, whose peak memory is measured. The
alternatives take turns, and the table shows medians. All use the same 256 examples of 64 tokens per
update, in float32; the plain batch of 8 uses 8.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

LENGTH, MICROBATCH, BATCH = 64, 8, 256


def keras_model(**optimizer):
    import keras

    import keras_efficient as ke

    model, _ = ke.models.load(ke.data.demo_model(), library="keras")
    model.compile(
        keras.optimizers.AdamW(1e-5, **optimizer),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model, ("token_ids", "padding_mask", "segment_ids")


def tf_keras_model():
    import tf_keras

    import keras_efficient as ke

    model, _ = ke.models.load(ke.data.demo_model(), library="tf_keras")
    model.compile(
        tf_keras.optimizers.AdamW(1e-5),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model, ("input_ids", "attention_mask", "token_type_ids")


def ours(model_and_names):
    import keras_efficient as ke

    ke.accumulate(model_and_names[0], microbatch_size=MICROBATCH)
    return model_and_names


def gradient_accumulator():
    import tensorflow as tf
    import tf_keras
    from gradient_accumulator import GradientAccumulateModel

    inner, names = tf_keras_model()
    inputs = {name: tf.keras.Input((None,), dtype="int32", name=name) for name in names}
    model = GradientAccumulateModel(
        accum_steps=BATCH // MICROBATCH, inputs=inputs, outputs=inner(inputs).logits
    )
    model.compile(
        tf_keras.optimizers.AdamW(1e-5),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model, names


#: name -> (what it trains, examples per step it is fed)
ALTERNATIVES = {
    "keras: plain batch 8": (keras_model, MICROBATCH),
    "keras: plain batch 256": (keras_model, BATCH),
    "keras: ours, 256 = 32 x 8": (lambda: ours(keras_model()), BATCH),
    "keras: gradient_accumulation_steps=32": (
        lambda: keras_model(gradient_accumulation_steps=BATCH // MICROBATCH),
        MICROBATCH,
    ),
    "tf_keras: plain batch 8": (tf_keras_model, MICROBATCH),
    "tf_keras: ours, 256 = 32 x 8": (lambda: ours(tf_keras_model()), BATCH),
    "tf_keras: gradient-accumulator": (gradient_accumulator, MICROBATCH),
}


def one(name):
    """Train in this process; print the peak and the time per example."""
    if "gradient-accumulator" in name:
        # It imports `tf.keras` and needs Keras 2. TensorFlow reads this when it is imported.
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import numpy as np
    import tensorflow as tf

    make, fed = ALTERNATIVES[name]
    model, names = make()
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (BATCH, LENGTH)).astype("int32")
    features = dict(zip(names, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    data = tf.data.Dataset.from_tensor_slices((features, rng.integers(0, 2, BATCH)))
    data = data.batch(fed, drop_remainder=True).repeat()
    steps = max(BATCH // fed, 1)
    model.fit(data, steps_per_epoch=steps, verbose=0)
    start = time.perf_counter()
    model.fit(data, steps_per_epoch=steps, verbose=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak, "seconds_per_example": seconds / BATCH}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--one", choices=ALTERNATIVES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one)
    results = {name: [] for name in ALTERNATIVES}
    for _ in range(arguments.rounds):
        for name, runs in results.items():
            command = [sys.executable, __file__, "--one", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    table = {}
    for name, runs in results.items():
        if not runs:
            table[name] = None
            continue
        base = results[f"{name.partition(':')[0]}: plain batch 8"]
        table[name] = {
            key: statistics.median(run[key] for run in runs)
            / statistics.median(run[key] for run in base)
            for key in runs[0]
        }
    print(f"{'relative to plain batch 8':<40} {'peak memory':>12} {'time/example':>13}")
    for name, row in table.items():
        cells = (
            "failed"
            if row is None
            else (f"{row['peak_bytes']:>12.2f} {row['seconds_per_example']:>13.2f}")
        )
        print(f"{name:<40} {cells}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(table, file, indent=2)


if __name__ == "__main__":
    main()
