"""Tag texts with any number of labels: their source, and whether they are positive and strong.

    python examples/multi_label.py --limit 1500 [--library tf_keras] [--output saved_models/tags]

Ran on a 2-core CPU, both libraries. Not run: GPU, TPU, several devices. The same from the command
line: `keras-efficient finetune tags.jsonl --task multi_label ...`.
"""

import argparse
import csv

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument(
    "--data", help='file with columns text and label, such as "funny|sad" [snippets]'
)
parser.add_argument("--model", help="folder of a Hugging Face model [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--output", default="saved_models/tags")
arguments = parser.parse_args()
ke.exporters.check_destination(arguments.output)

# The task says how labels are read, and which head, loss, metrics and outputs there are.
task = ke.tasks.get("multi_label")
if arguments.data:
    records = task.read(arguments.data)
else:
    # Labels of our own making, from the ratings of texts of four sources.
    texts, labels = [], []
    for source in ("movies", "news", "products", "tweets"):
        with open(ke.data.demo_ratings(source), encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rating = float(row["rating"])
                texts.append(row["text"])
                labels.append(
                    [source] + ["positive"] * (rating > 0) + ["strong"] * (abs(rating) > 2)
                )
    records = ke.data.Records.of(texts, labels, encode=task.encode)
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.25)
task.check(train, test)
print(*task.describe(train, test), sep="; ")

print(ke.mixed_precision("auto", library=arguments.library))
model, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(),
    task=task,
    num_labels=len(train.label_names),
    library=arguments.library,
)
keras = ke.flavor.of(model).keras
keras.utils.set_random_seed(0)
batches = ke.data.text(train, tokenizer, batch_size=32, max_length=64)
held_out = ke.data.text(test, tokenizer, batch_size=64, max_length=64, shuffle=False)

updates = batches.stats.batches * arguments.epochs
rate = ke.schedules.warmup_linear(1e-4, warmup_steps=updates // 10, total_steps=updates)
model.compile(
    ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
    task.loss(keras),
    metrics=task.metrics(keras, len(train.label_names)),
)
ke.accumulate(model, microbatch_size=16)
progress = ke.callbacks.Progress()
model.fit(batches, epochs=arguments.epochs, callbacks=[progress], shuffle=False, verbose=0)
print(task.evaluate(model, held_out, train.label_names))

# The signature "text" takes strings and returns "labels" and "probabilities".
report = ke.export(
    model,
    arguments.output,
    sample=next(iter(held_out)),
    tokenizer=tokenizer,
    task=task,
    labels=train.label_names,
)
print(report)
