"""Sentence embeddings before and after contrastive learning, and the memory of gradient caching.

python benchmarks/sentence_embeddings.py --row news      # find the next sentence of an editorial
python benchmarks/sentence_embeddings.py --row ratings   # agree with how alike two ratings are
python benchmarks/sentence_embeddings.py --row memory    # a whole batch against 8 microbatches

The texts are those of the archive that the demo's movie reviews are from. "news" makes a pair of
every two neighbouring sentences of its editorials; the last fifth of them is held out, so that
almost no editorial is in both parts, and the recall tells how often the right second sentence is
the most similar one. "ratings" draws pairs of held-out reviews, and compares the similarity of
their embeddings with -|difference of their mean ratings|. The start is MiniLM, whose embeddings
have been trained on a billion pairs, or with --start random a small encoder with random weights.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time

import numpy as np

LONGEST, BATCH, MICROBATCH = 64, 64, 16

RATES = {"simcse": 3e-5, "multiple_negatives": 1e-4, "supervised": 1e-4}


def ratings(source):
    """Return the texts of a source and their mean ratings, in the order of the archive."""
    import keras_efficient as ke

    with open(ke.data.demo_ratings(source), encoding="utf-8", newline="") as file:
        return [(row["text"], float(row["rating"])) for row in csv.DictReader(file)]


def news():
    """Return what each method trains on, and the held-out pairs."""
    import keras_efficient as ke

    texts = [text for text, _ in ratings("news")]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    train, test = pairs[: len(pairs) * 4 // 5], pairs[len(pairs) * 4 // 5 :]
    firsts, seconds = zip(*train, strict=True)
    held_out = ke.data.Records.of(
        [first for first, _ in test], second_texts=[second for _, second in test]
    )
    return {
        "simcse": ke.data.Records.of(firsts),
        "multiple_negatives": ke.data.Records.of(firsts, second_texts=seconds),
    }, held_out


def reviews():
    """Likewise: reviews, with and without their sentiment, and pairs with scores."""
    import keras_efficient as ke

    rows, random = ratings("movies"), np.random.default_rng(0)
    rows = [rows[i] for i in random.permutation(len(rows))]
    train, test = rows[:2000], rows[-2000:]
    texts = [text for text, _ in train]
    score = [-abs(a - b) for (_, a), (_, b) in zip(test[::2], test[1::2], strict=True)]
    held_out = ke.data.Records.of(
        [text for text, _ in test[::2]],
        score,
        second_texts=[text for text, _ in test[1::2]],
        encode=ke.tasks.get("sentence_embedding").encode,
    )
    return {
        "simcse": ke.data.Records.of(texts),
        "supervised": ke.data.Records.of(texts, [int(rating > 0) for _, rating in train]),
    }, held_out


def load(arguments, seed):
    """Return a model and its tokenizer."""
    import keras_efficient as ke

    ke.flavor.get(arguments.library).keras.utils.set_random_seed(seed)
    options = {"task": "sentence_embedding", "library": arguments.library}
    model, tokenizer = ke.models.load(ke.data.demo_model(), **options)
    if arguments.start == "random":
        sizes = {"num_layers": 2, "hidden_dim": 128, "num_heads": 2}
        model, tokenizer = ke.models.create(tokenizer, seed=seed, **sizes, **options)
    ke.unpad(model)
    return model, tokenizer


def train(model, tokenizer, method, records, arguments, seed):
    """Train for `--epochs`."""
    import keras_efficient as ke

    task = ke.tasks.get("sentence_embedding", texts=2 if records.second_texts else 1)
    batches = task.batches(records, tokenizer, batch_size=BATCH, max_length=LONGEST, seed=seed)
    updates = batches.stats.batches * arguments.epochs
    scale = 10 if arguments.start == "random" else 1
    rate = ke.schedules.warmup_linear(
        scale * RATES[method], warmup_steps=updates // 10, total_steps=updates
    )
    optimizer = ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model)
    model.compile(optimizer, jit_compile=False)
    ke.accumulate(ke.contrastive(model, method), microbatch_size=MICROBATCH)
    return model.fit(batches, epochs=arguments.epochs, shuffle=False, verbose=0).history["loss"]


def compare(arguments):
    """Print the report before, and after each method with each seed."""
    import keras_efficient as ke

    data, held_out = news() if arguments.row == "news" else reviews()
    for method, records in {None: None, **data}.items():
        if arguments.method not in (None, str(method)):
            continue
        fixed = method is None and arguments.start == "pretrained"
        scores = []
        for seed in range(1 if fixed else arguments.seeds):
            model, tokenizer = load(arguments, seed)
            losses, begun = [], time.process_time()
            if method is not None:
                losses = train(model, tokenizer, method, records, arguments, seed)
            seconds = time.process_time() - begun
            task = ke.tasks.get("sentence_embedding", texts=2)
            batches = task.batches(
                held_out, tokenizer, batch_size=64, max_length=LONGEST, training=False,
                shuffle=False,
            )  # fmt: skip
            report = task.evaluate(model, batches)
            scores.append(report.score)
            shown = {name: round(value, 4) for name, value in report.measures().items()}
            interval = [round(bound, 3) for bound in report.interval]
            print(
                f"{method or 'before'}, seed {seed}: {shown}, interval {interval}, losses "
                f"{[round(loss, 3) for loss in losses]}, {seconds:.0f} s of processor time",
                flush=True,
            )
        print(f"{method or 'before'}: mean {np.mean(scores):.4f} ± {np.std(scores):.4f}")


def memory(arguments):
    """Print the peak memory of one update beyond that of a tiny one, in processes of their own."""
    for microbatches in (1, 8):
        command = [sys.executable, __file__, "--row", "memory", "--library", arguments.library]
        command += ["--microbatches", str(microbatches), "--pairs", str(arguments.pairs)]
        subprocess.run(command, check=True)


def one_update(arguments):
    """Measure one update of `--pairs` pairs of 64 tokens each."""
    import tensorflow as tf

    import keras_efficient as ke

    arguments.start = "pretrained"
    ke.flavor.get(arguments.library).keras.utils.set_random_seed(0)
    model, tokenizer = ke.models.load(
        ke.data.demo_model(), task="sentence_embedding", library=arguments.library
    )
    model.compile(ke.optimizers.AdamW(1e-5, library=model), jit_compile=False)
    ke.contrastive(model)

    def fit(pairs):
        shape = (pairs, 2, LONGEST)
        ids = tf.constant(np.random.default_rng(0).integers(1000, 30000, shape), tf.int32)
        features = {"ids": ids, "mask": tf.ones_like(ids), "segments": tf.zeros_like(ids)}
        named = {name: features[role] for role, name in tokenizer.inputs.items()}
        data = tf.data.Dataset.from_tensor_slices(named).batch(pairs)
        begun = time.process_time()
        loss = model.fit(data, verbose=0, shuffle=False).history["loss"][0]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return peak, time.process_time() - begun, loss

    ke.accumulate(model, arguments.microbatches)
    before, *_ = fit(arguments.microbatches)
    after, seconds, loss = fit(arguments.pairs)
    found = {"microbatches": arguments.microbatches, "pairs": arguments.pairs}
    found |= {"before_MiB": round(before), "added_MiB": round(after - before)}
    print(json.dumps(found | {"seconds": round(seconds, 1), "loss": round(loss, 4)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", required=True, choices=("news", "ratings", "memory"))
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    parser.add_argument("--start", default="pretrained", choices=("pretrained", "random"))
    parser.add_argument("--method", help="only this one, or None for the start [all]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=64, help="of the update for memory [64]")
    parser.add_argument("--microbatches", type=int, help="measure one case of memory")
    given = parser.parse_args()
    if given.row != "memory":
        compare(given)
    else:
        (one_update if given.microbatches else memory)(given)
