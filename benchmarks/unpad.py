"""What `ke.unpad` gains: MiniLM trained with and without padding, at several shares of padding.

    python benchmarks/unpad.py [--library both] [--rounds 5] [--steps 6] [--threads 1] [--quick]

float32, the movie reviews, batch 32, AdamW. For each way to make batches (all padded to 128, by
buckets, grouped by length) the two models take turns in one process, in alternating order, on the
same batches. A figure is the median of the rounds' ratios of time, padded to unpadded; a share is
the padding among all tokens of these batches. Both clocks are shown: the wall's and the
processor's, which another program on the machine disturbs less.
"""

import argparse
import json
import statistics
import sys
import time

from optimizer_step import cpu

BATCH, LONGEST = 32, 128
WAYS = {
    "all padded to 128": {"buckets": [LONGEST]},
    "buckets": {},
    "grouped by length": {"group_by_length": True},
}


def model_of(library, unpadded):
    import keras_efficient as ke

    loaded = ke.models.load(ke.data.demo_model(), library=library)
    if unpadded:
        print(ke.unpad(loaded.model), file=sys.stderr)
    keras = ke.flavor.get(library).keras
    loaded.model.compile(
        ke.optimizers.AdamW(5e-5, exclude=ke.optimizers.NO_DECAY, library=library),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return loaded.model, loaded.tokenizer


def seconds(model, batches):
    before = time.perf_counter(), time.process_time()
    model.fit(batches, verbose=0, shuffle=False)
    after = time.perf_counter(), time.process_time()
    return [b - a for a, b in zip(before, after, strict=True)]


def measure(library, rounds, steps):
    import keras_efficient as ke

    padded, tokenizer = model_of(library, False)
    unpadded, _ = model_of(library, True)
    rows = {}
    for way, options in WAYS.items():
        data = ke.data.text(
            ke.data.demo_reviews(), tokenizer, batch_size=BATCH, max_length=LONGEST, **options
        )
        batches = data.take(steps).cache()
        masks = [next(v for k, v in x.items() if "mask" in k).numpy() for x, _ in batches]
        share = 1 - sum(m.sum() for m in masks) / sum(m.size for m in masks)
        for model in (padded, unpadded):
            seconds(model, batches)
        ratios = []
        for number in range(rounds):
            order = [padded, unpadded] if number % 2 else [unpadded, padded]
            taken = {id(model): seconds(model, batches) for model in order}
            pairs = zip(taken[id(padded)], taken[id(unpadded)], strict=True)
            ratios.append([p / u for p, u in pairs])
            print(f"{way}, round {number}: {ratios[-1]}", file=sys.stderr, flush=True)
        wall, processor = map(statistics.median, zip(*ratios, strict=True))
        rows[way] = {"padding": share, "wall": wall, "processor": processor}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=("keras", "tf_keras", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="updates per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of two steps")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    rounds, steps = (1, 2) if arguments.quick else (arguments.rounds, arguments.steps)
    libraries = ("keras", "tf_keras") if arguments.library == "both" else (arguments.library,)
    result = {library: measure(library, rounds, steps) for library in libraries}
    print(f"{cpu()}, {arguments.threads} thread(s); time padded / time unpadded")
    for library, rows in result.items():
        print(f"\n| {library} | padding | processor | wall |\n|---|---|---|---|")
        for way, row in rows.items():
            print(f"| {way} | {row['padding']:.0%} | {row['processor']:.2f} | {row['wall']:.2f} |")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
