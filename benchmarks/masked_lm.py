"""Adapt MiniLM to movie reviews by masked language modelling, beside plain tf_keras.

python benchmarks/masked_lm.py --step       # one update, at masked positions and at all of them
python benchmarks/masked_lm.py --adapt      # perplexity: ours, and transformers with its collator
python benchmarks/masked_lm.py --few 100    # does it help a classifier with few labels?

The texts are the demo's movie reviews. MiniLM comes without the head of its pretraining, so every
run starts that head from the same new weights. The plain run is `TFBertForMaskedLM` with the
`DataCollatorForLanguageModeling` of transformers, padding to the longest text of a batch, and
tf_keras' Adam: the same texts, batch size, updates and learning rates. Both are evaluated on the
same masked tokens.
"""

import argparse
import csv
import json
import os
import tempfile
import time
import warnings
from typing import Any

import numpy as np

import keras_efficient as ke

LONGEST, BATCH, RATE = 64, 32, 5e-4
TASK = ke.tasks.get("masked_lm")


def reviews():
    """Return all texts, shuffled, and whether they are positive."""
    with open(ke.data.demo_ratings("movies"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i]["text"] for i in order], [int(float(rows[i]["rating"]) > 0) for i in order]


def load(library, task=TASK, folder=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ke.models.load(folder or ke.data.demo_model(), task=task, library=library, **options)


def compiled(model, updates, task=TASK, head=0, rate=RATE):
    keras = ke.flavor.of(model).keras
    schedule = ke.schedules.warmup_linear(rate, warmup_steps=updates // 10, total_steps=updates)
    model.compile(
        ke.optimizers.AdamW(schedule, exclude=ke.optimizers.NO_DECAY, library=model),
        task.loss(keras),
        metrics=task.metrics(keras, head),
        jit_compile=False,
    )


def adapt(texts, held_out, epochs, library):
    """Train with this package; return the model, its tokenizer and the facts."""
    model, tokenizer = load(library)
    ke.unpad(model)
    options: dict[str, Any] = {"batch_size": BATCH, "max_length": LONGEST}
    records = ke.data.Records.of(texts)
    batches = TASK.batches(records, tokenizer, group_by_length=True, **options)
    test = TASK.batches(ke.data.Records.of(held_out), tokenizer, training=False, **options)
    before: Any = TASK.evaluate(model, test)
    compiled(model, batches.stats.batches * epochs)
    seconds = time.perf_counter(), time.process_time()
    model.fit(
        batches.repeat(),
        epochs=epochs,
        steps_per_epoch=batches.stats.batches,
        shuffle=False,
        verbose=0,
    )
    seconds = time.perf_counter() - seconds[0], time.process_time() - seconds[1]
    found = TASK.evaluate(model, test)
    facts = {"before": before.perplexity, **facts_of(found, seconds)}
    return model, tokenizer, facts, test


def plain(texts, test, epochs):
    """Train with transformers and tf_keras alone; evaluate on the batches `test` of our model."""
    import tensorflow as tf
    import transformers

    ours, tokenizer = load("tf_keras")
    model = transformers.TFBertForMaskedLM(ours.config)
    model(model.dummy_inputs)
    model.set_weights(ours.get_weights())
    fast = transformers.BertTokenizerFast.from_pretrained(ke.data.demo_model())
    collate = transformers.DataCollatorForLanguageModeling(fast, return_tensors="np")
    rows = fast(texts, truncation=True, max_length=LONGEST, return_special_tokens_mask=True)
    rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    random = np.random.default_rng(0)
    np.random.seed(0)

    def batches():
        for _ in range(epochs):
            order = random.permutation(len(rows))
            for start in range(0, len(rows), BATCH):
                found = dict(collate([rows[i] for i in order[start : start + BATCH]]))
                labels = found.pop("labels")
                yield {k: np.int32(v) for k, v in found.items()}, np.int32(labels)

    names = ("input_ids", "attention_mask", "token_type_ids")
    spec = tf.TensorSpec([None, None], tf.int32)
    data: Any = tf.data.Dataset.from_generator(
        batches, output_signature=(dict.fromkeys(names, spec), spec)
    )
    keras = ke.flavor.of(model).keras
    steps = -(-len(rows) // BATCH)
    rate = keras.optimizers.schedules.PolynomialDecay(RATE, steps * epochs, 0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    seconds = time.perf_counter(), time.process_time()
    model.fit(data.prefetch(2), epochs=epochs, steps_per_epoch=steps, verbose=0)
    seconds = time.perf_counter() - seconds[0], time.process_time() - seconds[1]
    ours.set_weights(model.get_weights())
    roles = {name: tokenizer.inputs[role] for role, name in KERAS_INPUTS.items()}
    found = TASK.evaluate(ours, (({roles[k]: v for k, v in x.items()}, y) for x, y in test))
    return facts_of(found, seconds)


KERAS_INPUTS = ke.data.KERASHUB | ke.data.MASK_POSITIONS


def facts_of(report, seconds):
    low, high = report.perplexity_interval
    return {
        "perplexity": report.perplexity,
        "interval": [low, high],
        "accuracy": report.accuracy,
        "unigram": report.baseline_perplexity,
        "tokens": report.tokens,
        "wall_seconds": seconds[0],
        "processor_seconds": seconds[1],
    }


def few_labels(folder, texts, labels, number, seeds, library):
    """Return the accuracies of classifiers that start from MiniLM and from the adapted model."""
    task = ke.tasks.get("classification")
    test = ke.data.Records.of(texts[-1000:], labels[-1000:])
    found = {"MiniLM": [], "adapted": []}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(texts) - 1000)[:number]
        train = ke.data.Records.of([texts[i] for i in order], [labels[i] for i in order])
        for name, start in (("MiniLM", None), ("adapted", folder)):
            model, tokenizer = load(library, task, start, num_labels=2, seed=seed)
            ke.flavor.of(model).keras.utils.set_random_seed(seed)
            ke.unpad(model)
            options: dict[str, Any] = {"max_length": LONGEST, "batch_size": 16}
            batches = ke.data.text(train, tokenizer, seed=seed, **options)
            compiled(model, batches.stats.batches * 6, task, 2, 1e-4)
            model.fit(
                batches.repeat(),
                epochs=6,
                steps_per_epoch=batches.stats.batches,
                shuffle=False,
                verbose=0,
            )
            report: Any = task.evaluate(model, ke.data.text(test, tokenizer, **options))
            found[name].append(report.accuracy)
    return found


def step(library, repeats=12):
    """Return the median processor time of an update, masked positions and all in turns."""
    texts = reviews()[0][:BATCH]
    runs = {}
    for name in ("masked positions", "all positions"):
        model, tokenizer = load(library)
        masking = ke.data.Masking()
        options = {"batch_size": BATCH, "max_length": LONGEST, "masking": masking}
        if name == "all positions":
            model, tokenizer = _at_all_positions(model, tokenizer, library)
        ke.unpad(model, ignore_padding_outputs=True)
        ((features, labels),) = ke.data.text(texts, tokenizer, group_by_length=True, **options)
        compiled(model, 1000)
        runs[name] = (model, features, labels)
    times = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, (model, features, labels) in runs.items():
            start = time.process_time()
            model.train_on_batch(features, labels)
            if repeat > 1:
                times[name].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in times.items()} | {
        "tokens": int((features[tokenizer.inputs["mask"]].numpy() > 0).sum()),
        "masked": int((labels.numpy() >= 0).sum()),
    }


def _at_all_positions(model, tokenizer, library):
    """Return a model that computes the vocabulary for all positions, and labels per token."""
    keras = ke.flavor.of(model).keras
    inputs = {k: v for k, v in tokenizer.inputs.items() if k != "mask_positions"}
    names = list(inputs.values())
    if library == "tf_keras":
        return model, ke.data.as_tokenizer(tokenizer, inputs=inputs)
    features = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    ids = features[inputs["ids"]]
    positions = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1) - 1
    whole = keras.Model(features, model(features | {"mask_positions": positions}))
    return whole, ke.data.as_tokenizer(tokenizer, inputs=inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", action="store_true", help="time one update")
    parser.add_argument("--adapt", action="store_true", help="perplexity of both")
    parser.add_argument("--few", type=int, help="number of labelled texts")
    parser.add_argument("--texts", type=int, default=2000, help="a quarter is held out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    arguments = parser.parse_args()
    library = arguments.library

    def show(**facts):
        load = [round(x, 1) for x in os.getloadavg()]
        print(json.dumps({"library": library, "load": load} | facts), flush=True)

    if arguments.step:
        show(step=step(library))
    if not arguments.adapt and arguments.few is None:
        return
    texts, labels = reviews()
    train, test = texts[: arguments.texts * 3 // 4], texts[arguments.texts * 3 // 4 :]
    test = test[: arguments.texts // 4]
    model, tokenizer, facts, batches = adapt(train, test, arguments.epochs, library)
    show(ours=facts)
    if arguments.few is not None:
        with tempfile.TemporaryDirectory() as folder:
            ke.models.save(model, tokenizer, f"{folder}/adapted", task=TASK)
            rest = slice(arguments.texts, None)
            found = few_labels(
                f"{folder}/adapted",
                texts[rest],
                labels[rest],
                arguments.few,
                arguments.seeds,
                library,
            )
        show(few=arguments.few, accuracies=found)
    if arguments.adapt:
        batches = TASK.batches(
            ke.data.Records.of(test),
            load("keras")[1],
            training=False,
            batch_size=BATCH,
            max_length=LONGEST,
        )
        show(plain=plain(train, batches, arguments.epochs))


if __name__ == "__main__":
    main()
