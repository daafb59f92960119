"""Answer questions with parts of texts, with your own `compile` and `fit`, and export the model.

    python examples/question_answering.py [--limit 200] [--library tf_keras]

The questions ask for the named entities of tweets ("Which person is mentioned?"), after Li et al.
2020. Ran on a 2-core CPU on ten made-up questions and a tiny model, both libraries; the defaults
are those of the row in docs/tasks.md, which was run by the command line. Not run: this script with
its defaults, GPU, TPU, several devices.
`keras-efficient finetune --task question_answering` does the same with one command.
"""

import argparse

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="JSON of SQuAD, or JSONL of questions [tweets]")
parser.add_argument("--model", help="folder of a Hugging Face model [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, help="use about this many questions [all]")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--max-length", type=int, default=96, help="tokens of a window")
parser.add_argument("--stride", type=int, default=32, help="tokens that two windows share")
parser.add_argument("--output", default="saved_models/answers")
arguments = parser.parse_args()

# Data: questions, contexts and where the answers stand. Bad ones are refused by line or id.
task = ke.tasks.get("question_answering")
records = task.read(arguments.data or ke.data.demo_questions())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.25)
task.check(train)
print(*task.describe(train, test), sep="\n")

# Model: a head that scores each token as the first and the last one of the answer.
model, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(),
    task=task,
    library=arguments.library,
)
keras = ke.flavor.of(model).keras
keras.utils.set_random_seed(0)
print(ke.unpad(model))
options = {name: getattr(arguments, name) for name in ("batch_size", "max_length", "stride")}
batches = ke.data.text(train, tokenizer, group_by_length=True, **options)
held_out = ke.data.text(test, tokenizer, shuffle=False, **options)
print(batches.stats)

# Training: your own compile and fit.
updates = batches.stats.batches * arguments.epochs
rate = ke.schedules.warmup_linear(1e-4, warmup_steps=updates // 10, total_steps=updates)
model.compile(
    ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
    task.loss(keras),
    metrics=task.metrics(keras, 2),
    jit_compile=False,
)
model.fit(batches, epochs=arguments.epochs, shuffle=False, verbose=2)
# The answers of all windows of a text, compared as SQuAD does.
task = task.with_data(held_out)
print(found := task.evaluate(model, held_out))

# Export: strings in, answers with their characters out; verified before it is moved into place.
report = ke.export(
    model,
    arguments.output,
    sample=next(iter(held_out)),
    tokenizer=tokenizer,
    task=task,
    facts={**found.measures(), "quality": found},
)
print(report)
pair = ("Which person is mentioned?", "Justin Bieber is in New York with Apple.")
for answer in ke.serving.predict(arguments.output, [pair]):
    print(answer)
