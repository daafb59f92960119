"""Learn sentence embeddings: from texts alone by SimCSE, or from pairs that belong together.

    python examples/sentence_embeddings.py --limit 1000 [--library tf_keras] [--data pairs.csv]

Without --data, the texts are neighbouring sentences of newspaper editorials, and the question is
which sentence follows. Ran on a 2-core CPU, both libraries. Not run: GPU, TPU, several devices.
"""

import argparse
import csv

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="file with the columns first and second [editorials]")
parser.add_argument("--model", help="folder of a Hugging Face model [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--method", default="multiple_negatives", help="or simcse, without pairs")
parser.add_argument("--limit", type=int, default=2500, help="use this many pairs [2,500]")
parser.add_argument("--batch-size", type=int, default=64, help="examples that are compared [64]")
parser.add_argument("--microbatch-size", type=int, default=8, help="examples in memory [8]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--quantize", choices=("int8", "bfloat16"), help="of the export [none]")
parser.add_argument("--output", default="saved_models/embeddings")
arguments = parser.parse_args()
ke.exporters.check_destination(arguments.output)

# Pairs of texts, whose embeddings are compared, and single texts.
pairs, single = (ke.tasks.get("sentence_embedding", texts=texts) for texts in (2, 1))
if arguments.data:
    records = pairs.read(arguments.data, text_column=("first", "second"))
else:
    with open(ke.data.demo_ratings("news"), encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    records = ke.data.Records.of(texts[::2], second_texts=texts[1::2])
firsts, seconds = (column[: arguments.limit] for column in (records.texts, records.second_texts))
# The last fifth is held out: sentences of one editorial are in the same part.
cut = len(firsts) * 4 // 5
train = ke.data.Records(firsts[:cut], second_texts=seconds[:cut])
test = ke.data.Records(firsts[cut:], second_texts=seconds[cut:])
pairs.check(train, test)
print(*pairs.describe(train, test), sep="; ")

print(ke.mixed_precision("auto", library=arguments.library))
model, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(), task=pairs, library=arguments.library
)
ke.flavor.of(model).keras.utils.set_random_seed(0)
held_out = pairs.batches(test, tokenizer, batch_size=64, max_length=64, shuffle=False)
print("Before:", pairs.evaluate(model, held_out), sep="\n")

options = {"batch_size": arguments.batch_size, "max_length": 64}
if arguments.method == "simcse":
    batches = single.batches(ke.data.Records(train.texts), tokenizer, **options)
else:
    batches = pairs.batches(train, tokenizer, **options)
updates = batches.stats.batches * arguments.epochs
peak = 3e-5 if arguments.method == "simcse" else 1e-4
rate = ke.schedules.warmup_linear(peak, warmup_steps=updates // 10, total_steps=updates)

# No loss in `compile`: the contrastive loss compares all examples of a batch, however it is split.
optimizer = ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model)
model.compile(optimizer, jit_compile=False)
ke.unpad(model)
ke.contrastive(model, arguments.method)
ke.accumulate(model, microbatch_size=arguments.microbatch_size)
progress = ke.callbacks.Progress()
model.fit(batches, epochs=arguments.epochs, callbacks=[progress], shuffle=False, verbose=0)
print("After:", pairs.evaluate(model, held_out), sep="\n")

# The signature "text" takes single texts, and returns "embedding", vectors of unit length.
sample = next(iter(single.batches(test.texts, tokenizer, batch_size=8, max_length=64)))
report = ke.export(
    model,
    arguments.output,
    sample=sample,
    tokenizer=tokenizer,
    task=single,
    quantize=arguments.quantize,
)
print(report)
