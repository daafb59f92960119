"""Compare two texts: whether both are from the same source.

    python examples/text_pairs.py --limit 1500 [--library tf_keras] [--output saved_models/pairs]

Ran on a 2-core CPU, both libraries. Not run: GPU, TPU, several devices. The same from the command
line: `keras-efficient finetune pairs.csv --text-column first --text-column second ...`.
"""

import argparse
import csv
import random

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="file with columns first, second and label [snippets]")
parser.add_argument("--model", help="folder of a Hugging Face model [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, default=2000, help="use this many pairs [2,000]")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--output", default="saved_models/pairs")
arguments = parser.parse_args()
ke.exporters.check_destination(arguments.output)


def snippet_pairs(count):
    """Pairs of texts, half of them from one source, and labels of our own making."""
    generator, texts = random.Random(0), {}
    for source in ("movies", "news", "products", "tweets"):
        with open(ke.data.demo_ratings(source), encoding="utf-8", newline="") as file:
            texts[source] = [row["text"] for row in csv.DictReader(file)]
        generator.shuffle(texts[source])
    # No text is in two pairs, so that none is in both parts of the split.
    for number in range(count):
        one, other = generator.sample(sorted(texts), 2)
        label = ("different", "same")[number % 2]
        yield texts[one].pop(), texts[one if label == "same" else other].pop(), label


# A task of pairs joins both texts as the model was pretrained, with segment ids.
task = ke.tasks.get("classification", texts=2)
if arguments.data:
    records = task.read(arguments.data, text_column=("first", "second"))
    _, records = ke.data.split(records, validation=min(arguments.limit, len(records) - 1))
else:
    firsts, seconds, labels = zip(*snippet_pairs(arguments.limit), strict=True)
    records = ke.data.Records.of(firsts, labels, second_texts=seconds)
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

# The signature "text" takes "text" and "second_text", and returns "label" and "probabilities".
report = ke.export(
    model,
    arguments.output,
    sample=next(iter(held_out)),
    tokenizer=tokenizer,
    task=task,
    labels=train.label_names,
)
print(report)
