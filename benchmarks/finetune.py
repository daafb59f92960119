"""Fine-tune MiniLM on movie reviews: plain `model.fit` against dynamic padding and auto precision.

    python benchmarks/finetune.py [--library keras] [--limit 3000] [--rounds 3] [--json FILE]

The baseline is plain `model.fit` in float32 with every text padded to 128 tokens. The alternative
uses length buckets and `ke.mixed_precision("auto")`. Data, optimizer, learning rate and seed are
the same, and the number of updates nearly so; each trains in a process of its own, in turns. The
ratio is that of the median training times per example, without the first two steps, which trace
the graph. The accuracy is on the same 1,605 reviews.
"""

import argparse
import json
import statistics
import subprocess
import sys

ALTERNATIVES = ("plain", "ours", "ours in float32")
BATCH, LONGEST = 32, 128


def one(name, library, limit, epochs):
    """Train in this process; print the speed and the accuracy."""
    import keras_efficient as ke

    plain = name == "plain"
    policy = "auto" if name == "ours" else "float32"
    precision = ke.mixed_precision(policy, library=library)
    records = ke.data.read_records(ke.data.demo_reviews())
    train, test = ke.data.split(records, validation=1605, stratify=False)
    train = train.take(range(min(limit, len(train))))
    model, tokenizer = ke.models.load(ke.data.demo_model(), library=library)
    keras = ke.flavor.of(model).keras
    keras.utils.set_random_seed(0)
    buckets = [LONGEST] if plain else None
    data = ke.data.text(train, tokenizer, batch_size=BATCH, max_length=LONGEST, buckets=buckets)
    total = data.stats.batches * epochs
    rate = ke.schedules.warmup_linear(1e-4, warmup_steps=total // 10, total_steps=total)
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=library),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    speed = ke.callbacks.Throughput()
    model.fit(data, epochs=epochs, callbacks=[speed], verbose=0, shuffle=False)
    test = ke.data.text(test, tokenizer, batch_size=64, max_length=LONGEST)
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    result = {
        "seconds_per_example": 1 / speed.examples_per_second,
        "accuracy": float(accuracy),
        "padding_share": data.stats.padding_share,
        "precision": str(precision),
    }
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    parser.add_argument("--limit", type=int, default=3000, help="training examples")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--one", choices=ALTERNATIVES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one, arguments.library, arguments.limit, arguments.epochs)
    results = {name: [] for name in ALTERNATIVES}
    for _ in range(arguments.rounds):
        for name, runs in results.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    base = statistics.median(run["seconds_per_example"] for run in results["plain"])
    print(f"{'':<16} {'speed-up':>9} {'accuracy':>9} {'padding':>8}  precision")
    table = {}
    for name, runs in results.items():
        row = {key: statistics.median(run[key] for run in runs) for key in list(runs[0])[:3]}
        row["speed_up"] = base / row.pop("seconds_per_example")
        table[name] = row
        print(
            f"{name:<16} {row['speed_up']:>8.2f}x {row['accuracy']:>9.2%} "
            f"{row['padding_share']:>8.1%}  {runs[0]['precision']}"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(table, file, indent=2)


if __name__ == "__main__":
    main()
