"""Adapt an encoder to texts without labels, fill masks with it, and start a classifier from it.

    python examples/masked_lm.py [--limit 400] [--library tf_keras] [--unit word]

The texts are movie reviews. Ran on a 2-core CPU with `--limit 200 --epochs 1`, both libraries,
which is too short to learn more than frequent words; docs/language-models.md has a longer run.
Not run: GPU, TPU, several devices. `keras-efficient finetune --task masked_lm` does the same with
one command.
"""

import argparse
import csv
import shutil

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help=".txt of one text per line, or data with columns [reviews]")
parser.add_argument("--model", help="folder of a Hugging Face model [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--unit", default="token", choices=("token", "word", "span"))
parser.add_argument("--limit", type=int, help="use this many texts [all]")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
parser.add_argument("--output", default="saved_models/reviews-lm")
parser.add_argument("--adapted", default="saved_models/reviews-adapted")
arguments = parser.parse_args()

# Data: texts without labels. The masks are drawn anew in each epoch, in the input pipeline.
task = ke.tasks.MaskedLM(masking=ke.data.Masking(unit=arguments.unit))
if arguments.data:
    records = task.read(arguments.data)
else:
    with open(ke.data.demo_ratings("movies"), encoding="utf-8", newline="") as file:
        records = ke.data.Records.of([row["text"] for row in csv.DictReader(file)])
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.1)

# Model: its head reads the masked positions only. Padding is not computed.
model, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(), task=task, library=arguments.library
)
keras = ke.flavor.of(model).keras
keras.utils.set_random_seed(0)
print(ke.unpad(model))
options = {"batch_size": arguments.batch_size, "max_length": arguments.max_length}
batches = task.batches(train, tokenizer, group_by_length=True, **options)
held_out = task.batches(test, tokenizer, training=False, **options)
print(batches.stats)

# Training: your own compile and fit.
updates = batches.stats.batches * arguments.epochs
rate = ke.schedules.warmup_linear(5e-4, warmup_steps=updates // 10, total_steps=updates)
model.compile(
    ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
    task.loss(keras),
    metrics=task.metrics(keras, 0),
    jit_compile=False,
)
model.fit(
    batches.repeat(),
    epochs=arguments.epochs,
    steps_per_epoch=batches.stats.batches,
    validation_data=held_out,
    shuffle=False,
    verbose=2,
)
print(found := task.evaluate(model, held_out))

# Export: strings in, the best words for each [MASK] out.
report = ke.export(
    model,
    arguments.output,
    sample=next(iter(held_out)),
    tokenizer=tokenizer,
    task=task,
    facts={**found.measures(), "quality": found},
)
print(report)
for answer in ke.serving.predict(arguments.output, ["This [MASK] is not [MASK]."]):
    for words in answer["masked"]:
        print(", ".join(f"{word['word']} {word['probability']:.3f}" for word in words))

# The adapted encoder, with a new head: train it as in examples/finetune.py.
shutil.rmtree(arguments.adapted, ignore_errors=True)
ke.models.save(model, tokenizer, arguments.adapted, task=task)
classifier, tokenizer = ke.models.load(arguments.adapted, task="classification", num_labels=2)
print(classifier.name, tokenizer)
