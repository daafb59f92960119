"""Fine-tune MiniLM on all GPUs of one machine, and resume after the process was killed.

    python examples/multi_gpu.py [--batch-size 256] [--run runs/multi_gpu]
    python examples/multi_gpu.py --cpus 2 --limit 400 --batch-size 32       # try it on a CPU

Ran on a 2-core CPU split into two logical devices (--cpus 2), 400 reviews. Not run: GPUs.
"""

import argparse

import tensorflow as tf

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="CSV, TSV or JSONL with columns text and label [movie reviews]")
parser.add_argument("--model", help="folder of a Hugging Face model, or a KerasHub preset [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--cpus", type=int, help="rehearse on this many logical CPU devices")
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=256, help="of all GPUs together")
parser.add_argument("--microbatch-size", type=int, default=16, help="in a GPU's memory at once")
parser.add_argument("--run", default="runs/multi_gpu", help="where the run is kept")
arguments = parser.parse_args()

if arguments.cpus:
    (cpu,) = tf.config.list_physical_devices("CPU")
    devices = [tf.config.LogicalDeviceConfiguration()] * arguments.cpus
    tf.config.set_logical_device_configuration(cpu, devices)

# This comes first: it lets GPU memory grow on demand, and seeds the random generators.
strategy = ke.strategy("mirrored" if arguments.cpus else "auto", seed=0)
print(ke.mixed_precision("auto", library=arguments.library))

records = ke.data.read_records(arguments.data or ke.data.demo_reviews())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(ke.data.require_classes(records), validation=0.1)

with strategy.scope():
    model, tokenizer = ke.models.load(
        arguments.model or ke.data.demo_model(),
        num_labels=len(train.label_names),
        library=arguments.library,
    )
    batches = ke.data.text(train, tokenizer, batch_size=arguments.batch_size)
    updates = batches.stats.batches * arguments.epochs
    rate = ke.schedules.warmup_linear(1e-4, warmup_steps=updates // 10, total_steps=updates)
    keras = ke.flavor.of(model).keras
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
# One all-reduce per update, and correct gradients for a last batch that does not divide evenly.
ke.accumulate(model, microbatch_size=arguments.microbatch_size)

held_out = ke.data.text(test, tokenizer, batch_size=64, shuffle=False)
model.fit(
    batches,
    epochs=arguments.epochs,
    validation_data=held_out,
    shuffle=False,
    verbose=2,
    callbacks=[ke.callbacks.Resume(arguments.run, every_steps=100)],
)
