"""Fine-tune MiniLM, keep fewer layers, neurons and word pieces, and fine-tune what is left.

    python examples/shrink.py [--data FILE] [--model FOLDER] [--limit 2400] [--epochs 1]

It prints the accuracy, size and int8 latency of the whole model and of smaller ones.

Ran on a 2-core CPU with MiniLM and 2,400 movie reviews, and in the tests. Not run: GPU, TPU.
"""

import argparse

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="CSV, TSV or JSON lines with text and label [movie reviews]")
parser.add_argument("--model", help="folder of a BERT-like model [MiniLM]")
parser.add_argument("--library", default="keras", choices=["keras", "tf_keras"])
parser.add_argument("--limit", type=int, default=2400, help="number of texts for training")
parser.add_argument("--epochs", type=int, default=1, help="for each of the models")
parser.add_argument("--layers", type=int, nargs="+", default=[3, 2], help="of the smaller models")
parser.add_argument("--output", default="saved_models/shrink", help="folder of the exported models")
arguments = parser.parse_args()

records = ke.data.read_records(arguments.data or ke.data.demo_reviews())
train, test = ke.data.split(records, validation=0.15)
train = train.take(range(min(arguments.limit, len(train))))
model, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(),
    num_labels=len(records.label_names),
    library=arguments.library,
)
keras = ke.flavor.of(model).keras
exports, lines = {}, []


def tune(name, model, tokenizer, rate):
    """Train a model, measure its accuracy and export it as int8."""
    data = ke.data.text(train, tokenizer, batch_size=32, max_length=64)
    steps = data.stats.batches * arguments.epochs
    model.compile(
        ke.optimizers.AdamW(
            ke.schedules.warmup_linear(rate, warmup_steps=steps // 10, total_steps=steps),
            exclude=ke.optimizers.NO_DECAY,
            library=arguments.library,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(data, epochs=arguments.epochs, verbose=0)
    held_out = ke.data.text(test, tokenizer, batch_size=64, max_length=64, shuffle=False)
    accuracy = model.evaluate(held_out, verbose=0, return_dict=True)["accuracy"]
    report = ke.export(
        model,
        f"{arguments.output}/{name}",
        sample=next(iter(held_out)),
        quantize="int8",
        latency=False,
    )
    exports[name] = report.directory
    lines.append(f"{name:<24} {accuracy:.1%} {model.count_params():>12,} {report.bytes:>12,}")


tune("whole", model, tokenizer, 5e-5)
# A few batches are enough to see which layers and neurons are needed.
batches = ke.data.text(train, tokenizer, batch_size=32, max_length=64).take(4)
ids, small_tokenizer = ke.data.trim_vocabulary(tokenizer, train.texts)
for layers in arguments.layers:
    small, report = ke.shrink(model, layers=layers, vocabulary=ids, data=batches)
    print(report)
    tune(f"{layers}-layers", small, small_tokenizer, 1e-4)
small, report = ke.shrink(
    model,
    layers=arguments.layers[0],
    feed_forward=ke.shrink(model, layers=1).report.sizes["feed_forward"][0] // 2,
    vocabulary=ids,
    data=batches,
    importance="reconstruction",
)
tune(f"{arguments.layers[0]}-layers-half-neurons", small, small_tokenizer, 1e-4)
print(f"{'model':<24} accuracy   parameters  bytes of int8 export")
print("\n".join(lines))
times = ke.bench.bench(exports, batches=[8], lengths=[64], seconds=2, vocabulary=len(ids))
print("milliseconds for 8 texts of 64 tokens:")
for name, found in times.targets.items():
    print(f"{name:<24} {found['cases']['batch 8, length 64']['median_ms']:8.1f}")
