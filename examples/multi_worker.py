"""Fine-tune MiniLM on several workers, and restart from the last checkpoint if one is lost.

    keras-efficient launch --workers 2 --max-restarts 3 examples/multi_worker.py    # this machine
    keras-efficient launch --hosts a:12345,b:12345 examples/multi_worker.py         # over ssh
    keras-efficient launch --slurm --nodes 2 examples/multi_worker.py > job.sh      # sbatch job.sh
    TF_CONFIG='{"cluster": ..., "task": ...}' python examples/multi_worker.py       # by hand

All workers must have access to the folder --run: the chief writes it, and after a restart all
read it.

Ran with two workers on one 2-core machine, both libraries. Not run: GPUs, several machines, Slurm.
"""

import argparse

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="CSV, TSV or JSONL with columns text and label [movie reviews]")
parser.add_argument("--model", help="folder of a Hugging Face model, or a KerasHub preset [MiniLM]")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=256, help="of all workers together")
parser.add_argument("--microbatch-size", type=int, default=16, help="in a device's memory at once")
parser.add_argument("--communication", default="auto", choices=("auto", "ring", "nccl"))
parser.add_argument("--run", default="runs/multi_worker", help="shared folder of the run")
arguments = parser.parse_args()

# This comes first: it reads TF_CONFIG or Slurm's variables, and waits for all workers.
strategy = ke.strategy("auto", communication=ke.distribute.Communication(arguments.communication))
print(ke.mixed_precision("auto", library=arguments.library))

# Every worker reads the same records in the same order; each batch is divided among them.
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
ke.accumulate(model, microbatch_size=arguments.microbatch_size)

# Callbacks that decide, such as EarlyStopping, see the same numbers and go to all workers;
# those that only write, such as TensorBoard, go to the chief.
callbacks = [
    keras.callbacks.EarlyStopping("val_loss", patience=2),
    ke.callbacks.Resume(arguments.run + "/saves", every_steps=50),
]
if ke.distribute.is_chief():
    callbacks.append(keras.callbacks.TensorBoard(arguments.run + "/board"))
held_out = ke.data.text(test, tokenizer, batch_size=64, shuffle=False)
model.fit(
    batches,
    epochs=arguments.epochs,
    validation_data=held_out,
    shuffle=False,
    verbose=2 if ke.distribute.is_chief() else 0,
    callbacks=callbacks,
)
# All workers take part in saving; only the chief's file is kept.
model.save_weights(arguments.run + "/final.weights.h5")
