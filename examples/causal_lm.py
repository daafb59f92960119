"""Train a small language model from scratch, with a tokenizer of its own, and export it.

    python examples/causal_lm.py [--limit 400] [--library tf_keras]
    python examples/causal_lm.py --data answers.jsonl --prompts --model models/gpt2

The texts are movie reviews. With --prompts the data has the columns "prompt" and "completion", and
only the completions are learned. Ran on a 2-core CPU with `--limit 200 --epochs 1`, both libraries,
which is too short to write sentences. Not run: a pretrained GPT-2, GPU, TPU, several devices.
"""

import argparse
import csv

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help=".txt of one text per line, or data with columns [reviews]")
parser.add_argument("--prompts", action="store_true", help="data of prompts and completions")
parser.add_argument("--model", help="folder of a pretrained model [from scratch]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, help="use this many texts [all]")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
parser.add_argument("--vocabulary-size", type=int, default=4000)
parser.add_argument("--output", default="saved_models/writer")
arguments = parser.parse_args()

# Data: texts without labels, or prompts and completions.
strategy = ke.generation.Sample(temperature=0.8, top_p=0.95)
texts, longest = 2 if arguments.prompts else 1, arguments.max_length // 2
task = ke.tasks.CausalLM(texts, max_tokens=longest, strategy=strategy)
if arguments.data:
    columns = ("prompt", "completion") if arguments.prompts else "text"
    records = task.read(arguments.data, text_column=columns)
else:
    with open(ke.data.demo_ratings("movies"), encoding="utf-8", newline="") as file:
        records = ke.data.Records.of([row["text"] for row in csv.DictReader(file)])
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.1)
task.check(train)

# Model: a pretrained one, or a GPT-2 with random weights for a tokenizer of these texts.
if arguments.model:
    model, tokenizer = ke.models.load(arguments.model, task=task, library=arguments.library)
else:
    texts = [*train.texts, *(train.second_texts or ())]
    # The graph of an export can hold a WordPiece tokenizer.
    sizes = {"vocabulary_size": arguments.vocabulary_size, "max_length": arguments.max_length}
    tokenizer = ke.data.train_tokenizer(texts, kind="wordpiece", **sizes)
    model, tokenizer = ke.models.create(tokenizer, task=task, library=arguments.library)
keras = ke.flavor.of(model).keras
keras.utils.set_random_seed(0)
print(ke.unpad(model, ignore_padding_outputs=True))
options = {"batch_size": arguments.batch_size, "max_length": arguments.max_length}
# Not grouped by length: batches of short texts would weigh their tokens more than others.
batches = task.batches(train, tokenizer, buckets=[arguments.max_length], **options)
held_out = task.batches(test, tokenizer, training=False, **options)
print(batches.stats)

# Training: your own compile and fit. KerasHub would add an accuracy that counts padding.
updates = batches.stats.batches * arguments.epochs
peak = 5e-5 if arguments.model else 1e-3
rate = ke.schedules.warmup_linear(peak, warmup_steps=updates // 10, total_steps=updates)
model.compile(
    ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
    task.loss(keras),
    metrics=task.metrics(keras, 0),
    weighted_metrics=[],
    jit_compile=False,
)
speed = ke.callbacks.Throughput()
model.fit(
    batches.repeat(),
    epochs=arguments.epochs,
    steps_per_epoch=batches.stats.batches,
    validation_data=held_out,
    callbacks=[speed],
    shuffle=False,
    verbose=2,
)
print(f"{speed.tokens_per_second or 0:.0f} tokens per second")
print(found := task.evaluate(model, held_out))

# Export: the loop over the tokens is part of the graph. A pretrained GPT-2 takes token ids there.
report = ke.export(
    model,
    arguments.output,
    sample=next(iter(held_out)),
    tokenizer=tokenizer,
    task=task,
    facts={**found.measures(), "quality": found},
)
print(report)
prompts = ["The film", "It is"]
if arguments.model:
    options = {"max_tokens": longest, "strategy": strategy}
    print(*ke.models.generate_text(model, tokenizer, prompts, **options), sep="\n")
else:
    for answer in ke.serving.predict(arguments.output, prompts):
        print(answer["text"], answer["generated_text"])
