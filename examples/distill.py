"""Distil a fine-tuned MiniLM of six layers into a model of three.

    python examples/distill.py [--limit 3000] [--epochs 2] [--copies 0]

Trains the teacher, caches what it says about the training texts, and trains two students that
begin as every second layer of the teacher: by the labels alone, and by the teacher too. With
`--copies 5` two more learn from the teacher alone, six times as long: from the same texts, and from
five altered copies of each as well. Prints the accuracies. Ran on a 2-core CPU. Not run: GPU, TPU.
"""

import argparse
import re
import time

import keras

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default=ke.data.demo_reviews, help="data file [movie reviews]")
parser.add_argument("--model", default=ke.data.demo_model, help="BERT checkpoint [MiniLM]")
parser.add_argument("--limit", type=int, default=3000, help="training texts [3000]")
parser.add_argument("--epochs", type=int, default=2, help="epochs of each model [2]")
parser.add_argument("--copies", type=int, default=0, help="altered copies of each text [0]")
parser.add_argument("--teacher-outputs", default="runs/teacher_outputs", help="folder of the cache")
arguments = parser.parse_args()

data, folder = (x() if callable(x) else x for x in (arguments.data, arguments.model))
rest, test = ke.data.split(ke.data.read_records(data), validation=0.15)
_, train = ke.data.split(rest, validation=arguments.limit)
teacher, tokenizer = ke.models.load(folder, library="keras", num_labels=2)
batches = ke.data.text(train, tokenizer, batch_size=32, max_length=64)
tests = ke.data.text(test, tokenizer, batch_size=64, max_length=64, shuffle=False)


def fit(model, batches=batches, epochs=arguments.epochs):
    """Train a model; return its accuracy on the test texts."""
    steps = epochs * batches.stats.batches
    rate = ke.schedules.warmup_cosine(peak=5e-5, warmup_steps=steps // 10, total_steps=steps)
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    ke.unpad(model)
    started = time.process_time()
    model.fit(batches, epochs=epochs, verbose=2, shuffle=False)
    accuracy = model.evaluate(tests, verbose=0, return_dict=True)["accuracy"]
    seconds = time.process_time() - started
    print(f"accuracy {accuracy:.4f}, {seconds:.0f} s of processor time\n", flush=True)
    return accuracy


def student():
    """A classifier of every second layer of the teacher."""
    keras.utils.set_random_seed(0)
    config = teacher.get_config()
    config["backbone"]["config"]["num_layers"] //= 2
    config["preprocessor"] = None
    model = type(teacher).from_config(config)
    taught = {weight.path: weight for weight in teacher.weights}
    for weight in model.weights:
        path = re.sub(r"layer_(\d)/", lambda m: f"layer_{2 * int(m[1]) + 1}/", weight.path)
        weight.assign(taught[path])
    return model


print("teacher", flush=True)
accuracies = {"teacher": fit(teacher)}
outputs = ke.distillation.cache(teacher, batches, arguments.teacher_outputs)
for name, settings in (("labels alone", None), ("with the teacher", {"alpha": 0.2})):
    print(f"student, {name}", flush=True)
    model = student()
    if settings:
        ke.distill(model, outputs, temperature=2.0, **settings)
    accuracies[f"student, {name}"] = fit(model)
if arguments.copies:
    new = ke.data.augment_texts(train, tokenizer, embeddings=teacher, copies=arguments.copies)
    print(f"{len(new.records):,} copies, {new.dropped:,} identical ones dropped", flush=True)
    texts = [*train.texts, *new.records.texts]
    altered = ke.data.text(texts, tokenizer, batch_size=32, max_length=64)
    everything = ke.distillation.cache(teacher, altered, f"{arguments.teacher_outputs}_copies")
    plain = ke.data.text(list(train.texts), tokenizer, batch_size=32, max_length=64)
    factor = 1 + arguments.copies
    for name, data, source, epochs in (
        ("teacher alone, longer", plain, outputs, factor * arguments.epochs),
        ("teacher alone, copies", altered, everything, arguments.epochs),
    ):
        print(f"student, {name}", flush=True)
        model = ke.distill(student(), source, alpha=0.0, temperature=2.0)
        accuracies[f"student, {name}"] = fit(model, data, epochs)
for name, accuracy in accuracies.items():
    print(f"{name:30} {accuracy:.4f}")
