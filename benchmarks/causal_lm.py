"""A small GPT-2 from scratch on movie reviews, beside plain Keras.

    python benchmarks/causal_lm.py --step                 # tokens per second and MFU of updates
    python benchmarks/causal_lm.py --train --epochs 8     # perplexity after the same updates

The model has 4 blocks of 256 units and a vocabulary of 4,000 byte-level tokens; batches have 32
reviews of at most 64 tokens. "plain" is `GPT2CausalLM` of KerasHub or `TFGPT2LMHeadModel` of
transformers with Keras' own AdamW, `fit` and loss, on rows that are padded to 64 tokens, as
KerasHub's preprocessor and the examples of transformers make them; "plain, XLA" is that compiled by
XLA. "ours" is the same model on the same batches with `ke.unpad` and our AdamW, and "ours, grouped"
that on batches of similar lengths. All start from the same weights, see each text once per epoch,
and have the same learning rates: a warm-up and a cosine decay.

MFU, the model FLOPs utilization, is the number of floating-point operations that the real tokens
need, 6 for each weight of a product and 12 · blocks · width · length for attention (Chowdhery et
al. 2022, "PaLM", appendix B), per second and relative to what this machine reached in products of
float32 matrices of 2,048 rows and columns in the same run. Padding counts as waste.
"""

import argparse
import csv
import json
import os
import statistics
import time
from typing import Any

import numpy as np
import tensorflow as tf

import keras_efficient as ke

LONGEST, BATCH, RATE = 64, 32, 1e-3
SIZES = {"num_layers": 4, "hidden_dim": 256, "num_heads": 4}
VOCABULARY = 4000
KINDS = ("ours", "ours, grouped", "plain", "plain, XLA")
TASK = ke.tasks.get("causal_lm")


def reviews():
    """Return records to train on and held-out ones."""
    with open(ke.data.demo_ratings("movies"), encoding="utf-8", newline="") as file:
        records = ke.data.Records.of([row["text"] for row in csv.DictReader(file)])
    return ke.data.split(records, validation=0.1)


class Run:
    """A model with its batches, compiled in one of the ways of `KINDS`.

    Args:
        kind: one of `KINDS`.
        train: records to train on.
        tokenizer: their tokenizer.
        epochs: number of epochs of the learning rate.
        library: "keras" or "tf_keras".
    """

    def __init__(self, kind, train, tokenizer, epochs, library):
        self.model, self.tokenizer = ke.models.create(
            tokenizer, task=TASK, library=library, **SIZES
        )
        keras = ke.flavor.of(self.model).keras
        keras.utils.set_random_seed(0)
        ours = kind.startswith("ours")
        options = {"group_by_length": True} if "grouped" in kind else {"buckets": [LONGEST]}
        self.batches: Any = TASK.batches(
            train, self.tokenizer, batch_size=BATCH, max_length=LONGEST, **options
        )
        updates = self.batches.stats.batches * epochs
        warmup = updates // 10
        if ours:
            ke.unpad(self.model, ignore_padding_outputs=True)
            rate: Any = ke.schedules.warmup_cosine(RATE, warmup_steps=warmup, total_steps=updates)
            exclude = ke.optimizers.NO_DECAY
            optimizer = ke.optimizers.AdamW(rate, exclude=exclude, library=self.model)
        else:
            rate = keras.optimizers.schedules.CosineDecay(
                0.0, updates - warmup, warmup_target=RATE, warmup_steps=warmup
            )
            optimizer = keras.optimizers.AdamW(rate, weight_decay=0.01)
        self.model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100),
            weighted_metrics=[],
            jit_compile=kind == "plain, XLA",
        )

    def fit(self, epochs):
        """Train; return wall and processor seconds."""
        begin = time.perf_counter(), time.process_time()
        self.model.fit(
            self.batches.repeat(),
            epochs=epochs,
            steps_per_epoch=self.batches.stats.batches,
            shuffle=False,
            verbose=0,
        )
        return time.perf_counter() - begin[0], time.process_time() - begin[1]


def train(kind, epochs, library):
    """Train one model; return the facts."""
    records, held_out, tokenizer = data()
    run = Run(kind, records, tokenizer, epochs, library)
    test = TASK.batches(
        held_out, run.tokenizer, training=False, batch_size=BATCH, max_length=LONGEST
    )
    seconds = run.fit(epochs)
    report: Any = TASK.evaluate(run.model, test)
    return {
        "perplexity": report.perplexity,
        "interval": list(report.perplexity_interval),
        "accuracy": report.accuracy,
        "unigram": report.baseline_perplexity,
        "texts": len(records),
        "epochs": epochs,
        "wall_seconds": seconds[0],
        "processor_seconds": seconds[1],
        "tokens_per_second": epochs * run.batches.stats.tokens / seconds[0],
    }


def data():
    records, held_out = reviews()
    tokenizer = ke.data.train_tokenizer(
        records.texts, vocabulary_size=VOCABULARY, max_length=LONGEST
    )
    return records, held_out, tokenizer


def step(library, rounds=5, updates=12):
    """Return tokens per second and MFU of updates, the kinds in turns."""
    records, _, tokenizer = data()
    runs = {kind: Run(kind, records, tokenizer, 1, library) for kind in KINDS}
    products = _product_weights(runs["ours"].model, library)
    batches = {
        kind: list(run.batches.shuffle(99, seed=0).take(updates)) for kind, run in runs.items()
    }
    tokens = {kind: [_tokens(x) for x in found] for kind, found in batches.items()}
    lengths = {kind: [_squares(x) for x in found] for kind, found in batches.items()}
    rates = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind, run in runs.items():
            begin = time.perf_counter(), time.process_time()
            for features, labels in batches[kind]:
                run.model.train_on_batch(features, labels)
            seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
            if number:
                rates[kind].append([sum(tokens[kind]) / s for s in seconds])
    peak = peak_flops()
    found = {}
    for kind in KINDS:
        wall, processor = (statistics.median(column) for column in zip(*rates[kind], strict=True))
        each = 6 * products + 12 * SIZES["num_layers"] * SIZES["hidden_dim"] * (
            sum(lengths[kind]) / sum(tokens[kind])
        )
        found[kind] = {
            "tokens_per_second": round(wall),
            "tokens_per_processor_second": round(processor),
            "mfu": round(wall * each / peak, 3),
        }
    return {"peak_gflops": round(peak / 1e9), "product_weights": products, **found}


def _tokens(batch):
    return int((batch[1].numpy() != -100).sum())


def _squares(batch):
    """Return the sum of the squared lengths: tokens times the tokens that each attends to."""
    return int(((batch[1].numpy() != -100).sum(1) ** 2).sum())


def _product_weights(model, library):
    """Return the number of weights of products: kernels, and the table that is the output."""
    weights = ke.flavor.of(model).weights(model)
    matrices = [int(np.prod(w.shape)) for w in weights if len(w.shape) > 1]
    return sum(matrices) - LONGEST * SIZES["hidden_dim"]


def peak_flops(size=2048, repeats=10):
    """Return the best rate of float32 products of this machine, in operations per second."""
    x = tf.random.normal([size, size])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(x, x)))
    product()
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        product().numpy()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", action="store_true", help="time updates")
    parser.add_argument("--train", action="store_true", help="perplexity of each kind")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: without XLA")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    arguments = parser.parse_args()

    def show(**facts):
        load = [round(x, 1) for x in os.getloadavg()]
        print(json.dumps({"library": arguments.library, "load": load} | facts), flush=True)

    if arguments.step:
        show(step=step(arguments.library))
    if arguments.train:
        for kind in arguments.kind or KINDS[:3]:
            show(kind=kind, **train(kind, arguments.epochs, arguments.library))


if __name__ == "__main__":
    main()
