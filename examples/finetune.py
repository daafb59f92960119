"""Fine-tune MiniLM on movie reviews with your own `compile` and `fit`, and export it.

    python examples/finetune.py --limit 400 [--library tf_keras] [--output saved_models/example]

Ran on a 2-core CPU with 400 reviews, one epoch, both libraries. Not run: GPU, TPU, several devices.
`keras-efficient finetune` does the same, can resume, and writes a report of the run.
"""

import argparse

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="CSV, TSV or JSONL with columns text and label [movie reviews]")
parser.add_argument("--model", help="folder of a Hugging Face model [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--microbatch-size", type=int, default=16)
parser.add_argument("--output", default="saved_models/example")
arguments = parser.parse_args()

# Data: read the records, take a random sample, hold out a tenth.
records = ke.data.read_records(arguments.data or ke.data.demo_reviews())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(ke.data.require_classes(records), validation=0.1)

# Fail before training if the model cannot be written afterwards.
ke.exporters.check_destination(arguments.output)

# Model: set the precision policy first, since layers read it when they are created.
precision = ke.mixed_precision("auto", library=arguments.library)
print(precision)
model, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(),
    num_labels=len(train.label_names),
    library=arguments.library,
)
keras = ke.flavor.of(model).keras
keras.utils.set_random_seed(0)
batches = ke.data.text(train, tokenizer, batch_size=arguments.batch_size)
held_out = ke.data.text(test, tokenizer, batch_size=64, shuffle=False)
print(batches.stats)

# Training: your own compile and fit.
updates = batches.stats.batches * arguments.epochs
rate = ke.schedules.warmup_linear(1e-4, warmup_steps=updates // 10, total_steps=updates)
model.compile(
    ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
ke.accumulate(model, microbatch_size=arguments.microbatch_size)
speed = ke.callbacks.Throughput()
progress = ke.callbacks.Progress(throughput=speed)
model.fit(batches, epochs=arguments.epochs, callbacks=[speed, progress], shuffle=False, verbose=0)
results = model.evaluate(held_out, return_dict=True, callbacks=[progress], verbose=0)
print(f"training: {speed}\naccuracy: {results['accuracy']:.2%} of {len(test)} held-out texts")

# Export: written, run without Keras, compared, and only then moved into place.
facts = {"accuracy": float(results["accuracy"]), "data_fingerprint": train.fingerprint}
report = ke.export(model, arguments.output, sample=next(iter(held_out)), facts=facts)
print(report)
