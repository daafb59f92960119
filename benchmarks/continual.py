"""Forgetting: movie reviews, then tweets, then products, with and without replay and EWC.

    python benchmarks/continual.py [--texts 2000] [--seeds 3] [--strength 3e4] [--json FILE]

MiniLM learns three tasks one after the other, with one head: whether movie reviews, tweets and
product snippets are positive; for two epochs each. After the last one it is evaluated on 1,000
held-out texts of each task. The rows:

- plain: each task alone;
- "replay": each task together with 10% as many texts of the earlier ones;
- "EWC": `ke.ewc` on 500 texts of the task that was learned last, anew after each task;
- "both";
- "at once": all texts together for as many updates, which shows what is possible.

Accuracies are means over seeds.
"""

import argparse
import gc
import json
from pathlib import Path

import numpy as np
import serving
import shrink

import keras_efficient as ke

TASKS = ("reviews", "tweets", "products")
ROWS = ("plain", "replay", "EWC", "both", "at once")
BATCH, LONGEST, RATE, EPOCHS = serving.BATCH, serving.LONGEST, 1e-4, 2
REPLAYED, HELD_OUT, FISHER = 0.1, 1000, 500


def records(texts, seed):
    """Return {task: (training texts, held-out texts)}."""
    found = {}
    for name in TASKS:
        train, held_out = shrink.records_of(name)
        rng = np.random.default_rng(seed)
        train = train.take(rng.permutation(len(train))[:texts])
        found[name] = train, held_out.take(np.arange(min(HELD_OUT, len(held_out))))
    return found


def run(row, data, seed, strength):
    """Return the accuracy on each task after the last one."""
    import keras

    model, tokenizer = ke.models.load(ke.data.demo_model(), num_labels=2, seed=seed)
    keras.utils.set_random_seed(seed)

    def batches(texts, shuffle=True):
        return ke.data.text(
            texts,
            tokenizer,
            batch_size=BATCH if shuffle else 64,
            max_length=LONGEST,
            shuffle=shuffle,
            group_by_length=shuffle,
            seed=seed,
        )

    def fit(texts, updates):
        rate = ke.schedules.warmup_linear(RATE, warmup_steps=updates // 10, total_steps=updates)
        model.compile(
            ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )
        model.fit(batches(texts).repeat(), steps_per_epoch=updates, verbose=0, shuffle=False)

    def updates_of(texts):
        return -(-len(texts) // BATCH) * EPOCHS

    ke.unpad(model)
    parts = [data[name][0] for name in TASKS]
    if row == "at once":
        everything = parts[0] + parts[1] + parts[2]
        fit(everything, sum(map(updates_of, parts)))
    else:
        rng, earlier = np.random.default_rng(seed), None
        for number, part in enumerate(parts):
            texts = part
            if row in ("replay", "both") and earlier is not None:
                count = min(len(earlier), round(REPLAYED * len(part)))
                texts = part + earlier.take(rng.permutation(len(earlier))[:count])
            fit(texts, updates_of(part))
            if row in ("EWC", "both") and number < len(parts) - 1:
                ke.ewc(model, batches(part), strength=strength, examples=FISHER)
            earlier = part if earlier is None else earlier + part
    return {
        name: model.evaluate(batches(held_out, False), verbose=0, return_dict=True)["accuracy"]
        for name, (_, held_out) in data.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=2000, help="of each task [2000]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strength", type=float, default=3e4, help="of EWC [30000]")
    parser.add_argument("--only", nargs="+", default=ROWS, help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ke.tune_process()
    ke.mixed_precision("float32")
    found = {row: [] for row in ROWS if row in arguments.only}
    for seed in range(arguments.seeds):
        data = records(arguments.texts, seed)
        for row in found:
            found[row].append(run(row, data, seed, arguments.strength))
            gc.collect()
            shown = ", ".join(f"{name} {value:.1%}" for name, value in found[row][-1].items())
            print(f"seed {seed}, {row}: {shown}", flush=True)
    print(f"| | {' | '.join(TASKS)} | mean |")
    for row, results in found.items():
        means = [np.mean([result[name] for result in results]) for name in TASKS]
        print(f"| {row} | " + " | ".join(f"{m:.1%}" for m in (*means, np.mean(means))) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
