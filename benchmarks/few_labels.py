"""Augmentation, curricula, semi-supervision and active learning with few labels, and with all.

    python benchmarks/few_labels.py [--labels 500] [--active] [--seeds 3] [--only NAME …] [--json F]

MiniLM is fine-tuned on movie reviews, of which `--labels` are labelled, with the same number of
updates of 32 labelled texts in each row, and evaluated on 1,605 held-out reviews. `--labels all`
takes all 9,000. The rows:

- plain; "shuffled", "deleted", "cut off", "hidden", "random": `ke.data.text(augmentations=…)`;
- "R-Drop": `ke.adversarial(model, "rdrop")`;
- "short first": `ke.data.curriculum` by length; "easy first": by the loss of the plain model;
- "consistency": `ke.consistency` with the reviews whose labels are not used, 32 per update; and
  "consistency, labelled": without these;
- "pseudo-labels": the plain model labels the other reviews, those of a probability of 0.9 or more
  are added, and the pretrained model is trained on both.

With `--active`, 100 labels are drawn at random, and 100 more in each of four rounds by
`ke.data.select_to_label`; after each, the pretrained model is trained anew.

Accuracies are means over seeds, beside the difference from plain training on the same seed, its
standard error over seeds, and the processor time of training. A seed draws the labelled reviews,
the new layers, the order and the dropout.
"""

import argparse
import gc
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import serving

import keras_efficient as ke

BATCH, LONGEST = serving.BATCH, serving.LONGEST
RATE = 1e-4
#: Epochs over the labelled texts, by their number.
EPOCHS = {"few": 8, "all": 2}
UNLABELLED = 32
CONFIDENCE = 0.9
ROUNDS, PER_ROUND = 5, 100
AUGMENTATIONS = {
    "shuffled": ke.data.ShuffleTokens(share=0.15),
    "deleted": ke.data.DeleteTokens(rate=0.1, unit="word"),
    "cut off": ke.data.DeleteTokens(rate=0.1, span=True),
    "hidden": ke.data.ReplaceTokens(rate=0.1),
    "random": ke.data.ReplaceTokens(rate=0.1, by="random"),
}
NEED_UNLABELLED = ("consistency", "pseudo-labels")
ROWS = (
    *("plain", *AUGMENTATIONS, "R-Drop", "short first", "easy first"),
    *("consistency, labelled", *NEED_UNLABELLED),
)


class Run:
    """One seed.

    Args:
        labels: number of labelled reviews, or None for all.
        seed: int.
    """

    def __init__(self, labels, seed):
        train, self.held_out = serving.reviews()
        self.seed = seed
        order = np.random.default_rng(seed).permutation(len(train))
        self.labelled, self.others = train.take(order[:labels]), None
        if labels is not None:
            self.others = train.take(order[labels:])
        self.epochs = EPOCHS["all" if labels is None else "few"]
        self.plain = None

    def accuracy(self, row):
        """Train a model; return its accuracy and the seconds of processor time."""
        options, records, prepare, data = {}, self.labelled, None, None
        start = time.process_time()
        if row in AUGMENTATIONS:
            options["augmentations"] = [AUGMENTATIONS[row]]
        elif row == "R-Drop":
            prepare = lambda model, _: ke.adversarial(model, "rdrop")  # noqa: E731
        elif row.startswith("consistency"):
            prepare = lambda model, tokenizer: ke.consistency(model, tokenizer)  # noqa: E731
            if row == "consistency":
                data = self.with_unlabelled
        elif row in ("short first", "easy first"):
            data = lambda tokenizer: self.curriculum(tokenizer, row)  # noqa: E731
        elif row == "pseudo-labels":
            records = self.labelled + self.confident()
        model, tokenizer = self.train(records, options, prepare, data)
        seconds = time.process_time() - start
        found = model.evaluate(self.batches(self.held_out, tokenizer), verbose=0, return_dict=True)
        if row == "plain":
            self.plain = model, tokenizer
        del model
        gc.collect()
        return found["accuracy"], seconds

    def train(self, records, options=None, prepare=None, data=None):
        import keras

        model, tokenizer = ke.models.load(ke.data.demo_model(), num_labels=2, seed=self.seed)
        keras.utils.set_random_seed(self.seed)
        steps = math.ceil(len(self.labelled) / BATCH) * self.epochs
        schedule = ke.schedules.warmup_linear(RATE, warmup_steps=steps // 10, total_steps=steps)
        model.compile(
            ke.optimizers.AdamW(schedule, exclude=ke.optimizers.NO_DECAY),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=["accuracy"],
            jit_compile=False,
        )
        ke.unpad(model)
        if prepare is not None:
            prepare(model, tokenizer)
        if data is None:
            batches = self.batches(records, tokenizer, shuffle=True, **(options or {})).repeat()
        else:
            batches = data(tokenizer)
        model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False)
        return model, tokenizer

    def batches(self, records, tokenizer, *, shuffle=False, size=BATCH, **options):
        return ke.data.text(
            records,
            tokenizer,
            batch_size=size,
            max_length=LONGEST,
            shuffle=shuffle,
            group_by_length=shuffle,
            seed=self.seed,
            **options,
        )

    def with_unlabelled(self, tokenizer):
        some = self.batches(self.labelled, tokenizer, shuffle=True)
        texts = self.others.without_labels()
        more = self.batches(texts, tokenizer, shuffle=True, size=UNLABELLED).repeat()
        return ke.data.join_unlabelled(some, more, tokenizer)

    def curriculum(self, tokenizer, row):
        if row == "short first":
            scores = [len(text.split()) for text in self.labelled.texts]
        else:
            probabilities = self.probabilities(self.labelled)
            scores = -np.log(probabilities[np.arange(len(probabilities)), self.labelled.labels])
        return ke.data.curriculum(
            self.labelled, scores, lambda easy: self.batches(easy, tokenizer, shuffle=True)
        )

    def probabilities(self, records):
        """Return what the plain model predicts."""
        import keras

        model, tokenizer = self.plain
        texts = self.batches(records.without_labels(), tokenizer, size=64)
        return keras.ops.convert_to_numpy(
            keras.ops.softmax(model.predict(texts, verbose=0), axis=-1)
        )

    def confident(self):
        """Return the other texts with the labels that the plain model is sure of."""
        probabilities = self.probabilities(self.others)
        sure = probabilities.max(1) >= CONFIDENCE
        texts = [text for text, ok in zip(self.others.texts, sure, strict=True) if ok]
        labels = probabilities.argmax(1)[sure].astype(np.int32)
        return ke.data.Records(tuple(texts), labels, self.labelled.label_names)


def active(seeds):
    """Return {method: accuracies [seeds, rounds]}."""
    found = {}
    for method in ("at random", "entropy", "margin", "badge"):
        found[method] = []
        for seed in range(seeds):
            run, accuracies = Run(PER_ROUND, seed), []
            for number in range(ROUNDS):
                accuracy, seconds = run.accuracy("plain")
                accuracies.append(accuracy)
                print(
                    f"{method}, seed {seed}, {len(run.labelled)} labels: {accuracy:.2%}, "
                    f"{seconds:.0f} s",
                    flush=True,
                )
                if number < ROUNDS - 1:
                    chosen = select(run, method)
                    rest = np.setdiff1d(np.arange(len(run.others)), chosen)
                    run.labelled += run.others.take(chosen)
                    run.others = run.others.take(rest)
            found[method].append(accuracies)
    return found


def select(run, method):
    if method == "at random":
        rng = np.random.default_rng(run.seed)
        return rng.choice(len(run.others), PER_ROUND, replace=False)
    embeddings = None
    if method == "badge":
        model, tokenizer = run.plain
        pooled = ke.flavor.of(model).keras.Model(model.input, model.get_layer("logits").input)
        texts = run.batches(run.others.without_labels(), tokenizer, size=64)
        embeddings = pooled.predict(texts, verbose=0)
    return ke.data.select_to_label(
        run.probabilities(run.others),
        PER_ROUND,
        method=method,
        embeddings=embeddings,
        seed=run.seed,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", default="500", help='number of labelled reviews, or "all"')
    parser.add_argument("--active", action="store_true", help="active learning instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ke.tune_process()
    ke.mixed_precision("float32")
    if arguments.active:
        result = active(arguments.seeds)
        for method, accuracies in result.items():
            means = np.mean(accuracies, 0)
            print(f"| {method} | " + " | ".join(f"{mean:.1%}" for mean in means) + " |")
    else:
        result = compared(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


def compared(arguments):
    labels = None if arguments.labels == "all" else int(arguments.labels)
    rows = [row for row in ROWS if labels is not None or row not in NEED_UNLABELLED]
    rows = [row for row in rows if arguments.only is None or row in ("plain", *arguments.only)]
    found = {row: [] for row in rows}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        run = Run(labels, seed)
        for row in rows:
            found[row].append(run.accuracy(row))
            accuracy, seconds = found[row][-1]
            print(f"seed {seed}, {row}: {accuracy:.2%}, {seconds:.0f} s", flush=True)
    plain = np.array([accuracy for accuracy, _ in found["plain"]])
    for row in rows:
        accuracies = np.array([accuracy for accuracy, _ in found[row]])
        gain = accuracies - plain
        error = gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
        seconds = statistics.median(seconds for _, seconds in found[row])
        gained = "" if row == "plain" else f"{100 * gain.mean():+.1f} ± {100 * error:.1f}"
        print(f"| {row} | {accuracies.mean():.1%} | {gained} | {seconds:.0f} s |")
    return {row: [list(pair) for pair in pairs] for row, pairs in found.items()}


if __name__ == "__main__":
    main()
