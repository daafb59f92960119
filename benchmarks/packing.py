"""Examples per second and padding: packed rows beside other ways to make batches.

    python benchmarks/packing.py [--library keras] [--rounds 5] [--texts 512] [--threads 1] [--xla]

A training step of MiniLM on movie reviews of 27 tokens on average, float32, AdamW, about 32 texts
per update. The ways take turns in one process, in alternating order, each on the same texts: padded
to 128; grouped by length; grouped by length with `ke.unpad`; and packed into rows of 128 with
`ke.pack`. Figures are medians over rounds of the texts per second of processor time, and of time
that passes. With `--xla` the ways are those of fixed shapes, compiled: padded to 128, `ke.unpad`
with a number of rows, and packed.
"""

import argparse
import json
import statistics
import sys
import time

from optimizer_step import cpu

BATCH, LONGEST, TEXTS_PER_ROW = 32, 128, 8
WAYS = ("padded to 128", "grouped by length", "unpad", "packed")
COMPILED = ("padded to 128", "unpad", "packed")


class Way:
    """One way to train: a model of its own, and its batches.

    Args:
        name: its name.
        library: "keras" or "tf_keras".
        texts: number of texts.
        xla: whether it is compiled by XLA.
    """

    def __init__(self, name, library, texts, xla):
        import keras_efficient as ke

        model, tokenizer = ke.models.load(ke.data.demo_model(), num_labels=2, library=library)
        self.name, self.model, self.texts = name, model, texts
        records = ke.data.read_records(ke.data.demo_reviews())
        _, records = ke.data.split(records, validation=texts)
        if name == "packed":
            length = sum(map(len, tokenizer.encode(records.texts, LONGEST))) / texts
            # About as many texts as the others have.
            rows = round(BATCH * length / LONGEST)
            ke.pack(model, TEXTS_PER_ROW)
            options = {"batch_size": rows, "row_length": LONGEST, "texts_per_row": TEXTS_PER_ROW}
            data = ke.data.pack(records, tokenizer, **options)
        else:
            options = {"group_by_length": True}
            if xla or name == "padded to 128":
                options = {"buckets": [LONGEST], "drop_remainder": True}
            data = ke.data.text(records, tokenizer, batch_size=BATCH, max_length=LONGEST, **options)
            if name == "unpad":
                ke.unpad(model, rows=40 * BATCH if xla else None)
        self.stats, self.data = data.stats, data.cache()
        keras = ke.flavor.of(model).keras
        model.compile(
            ke.optimizers.AdamW(5e-5, exclude=ke.optimizers.NO_DECAY, library=library),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[],
            jit_compile=xla,
        )
        self.run()

    def run(self):
        """Train an epoch; return the texts per second of processor time, and that passes."""
        before = time.process_time(), time.perf_counter()
        self.model.fit(self.data, verbose=0, shuffle=False)
        after = time.process_time(), time.perf_counter()
        return [self.texts / (b - a) for a, b in zip(before, after, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=("keras", "tf_keras"), default="keras")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=512, help="a multiple of 32 [512]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--xla", action="store_true", help="compile, with fixed shapes")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    names = COMPILED if arguments.xla else WAYS
    ways = [Way(name, arguments.library, arguments.texts, arguments.xla) for name in names]
    speeds = {name: [] for name in names}
    for number in range(arguments.rounds):
        for way in ways if number % 2 else reversed(ways):
            speeds[way.name].append(way.run())
            print(f"round {number}, {way.name}: {speeds[way.name][-1]}", file=sys.stderr)
    print(f"{cpu()}, {arguments.threads} thread(s), {arguments.library}")
    print(
        "| | padding | updates | texts per processor second | per second |\n|---|---|---|---|---|"
    )
    result = {}
    for way in ways:
        processor, wall = map(statistics.median, zip(*speeds[way.name], strict=True))
        share, updates = way.stats.padding_share, way.stats.batches
        result[way.name] = {"padding": share, "processor": processor, "wall": wall}
        print(f"| {way.name} | {share:.0%} | {updates} | {processor:.1f} | {wall:.1f} |")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
