"""Find named entities in tweets with your own `compile` and `fit`, and export the model.

    python examples/token_classification.py [--limit 400] [--library tf_keras]

The tweets are those of the shared task of W-NUT 2016, with entities of ten types. Ran on a 2-core
CPU with `--limit 400 --epochs 2`, both libraries, which is too short to find entities; the default
settings are those of docs/tasks.md. Not run: GPU, TPU, several devices.
`keras-efficient finetune --task token_classification` does the same with one command.
"""

import argparse

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="CoNLL file, or JSONL of tags or entities [tweets]")
parser.add_argument("--model", help="folder of a Hugging Face model [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, help="use this many texts [all]")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
parser.add_argument("--output", default="saved_models/entities")
arguments = parser.parse_args()

# Data: a tag for each word. Bad lines are refused by their number.
task = ke.tasks.get("token_classification")
records = task.read(arguments.data or ke.data.demo_tagged_tweets())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.25)
task.check(train)
print(*task.describe(train, test), sep="\n")

# Model: a head with logits for each token. Padding is not computed.
model, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(),
    task=task,
    num_labels=len(train.label_names),
    library=arguments.library,
)
keras = ke.flavor.of(model).keras
keras.utils.set_random_seed(0)
print(ke.unpad(model, ignore_padding_outputs=True))
options = {"batch_size": arguments.batch_size, "max_length": arguments.max_length}
batches = ke.data.text(train, tokenizer, group_by_length=True, **options)
held_out = ke.data.text(test, tokenizer, shuffle=False, **options)
print(batches.stats)

# Training: your own compile and fit.
updates = batches.stats.batches * arguments.epochs
rate = ke.schedules.warmup_linear(1e-4, warmup_steps=updates // 10, total_steps=updates)
model.compile(
    ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
    task.loss(keras),
    metrics=task.metrics(keras, len(train.label_names)),
    jit_compile=False,
)
model.fit(batches, epochs=arguments.epochs, shuffle=False, verbose=2)
print(found := task.evaluate(model, held_out, train.label_names))

# Export: strings in, tags with their characters out; verified before it is moved into place.
report = ke.export(
    model,
    arguments.output,
    sample=next(iter(held_out)),
    tokenizer=tokenizer,
    labels=list(train.label_names),
    task=task,
    facts={**found.measures(), "quality": found},
)
print(report)
for answer in ke.serving.predict(arguments.output, ["Justin Bieber is in New York with Apple."]):
    print(answer["text"], answer["entities"], sep="\n")
