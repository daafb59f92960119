"""Fine-tune MiniLM on a TPU: static shapes, bfloat16, many steps per call.

    python examples/tpu.py --tpu local                  # on a TPU VM; or the TPU's name
    python examples/tpu.py --rehearse --limit 256       # the same program through XLA on a CPU

A TPU compiles one program per shape, so all texts are padded to one length, the remainder is
dropped, and one call of the program runs `--steps-per-execution` steps. The default is tf_keras,
because Keras 3.15's loop for several steps per call fails on several replicas.

Ran on a 2-core CPU with --rehearse: one device, all other settings as on a TPU. Not run: a TPU.
"""

import argparse

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", help="CSV, TSV or JSONL with columns text and label [movie reviews]")
parser.add_argument("--model", help="folder of a Hugging Face model, or a KerasHub preset [MiniLM]")
parser.add_argument("--library", default="tf_keras", choices=("keras", "tf_keras"))
parser.add_argument("--tpu", help="name or address of the TPU, or 'local' [found by itself]")
parser.add_argument("--rehearse", action="store_true", help="on this machine's CPU, with XLA")
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=256, help="of all cores together")
parser.add_argument("--microbatch-size", type=int, help="examples per core at a time [all]")
parser.add_argument("--length", type=int, default=64, help="tokens, for every text")
parser.add_argument("--steps-per-execution", type=int, default=8)
arguments = parser.parse_args()

# This comes first: it connects to the TPU and initialises it.
strategy = ke.strategy("one" if arguments.rehearse else "tpu", tpu=arguments.tpu, seed=0)
print(ke.mixed_precision("mixed_bfloat16", library=arguments.library))

records = ke.data.read_records(arguments.data or ke.data.demo_reviews())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(ke.data.require_classes(records), validation=0.1)


def static(records, tokenizer, **options):
    """Batches of one shape: one bucket, no ragged end."""
    return ke.data.text(
        records,
        tokenizer,
        batch_size=arguments.batch_size,
        max_length=arguments.length,
        buckets=[arguments.length],
        drop_remainder=True,
        **options,
    )


with strategy.scope():
    model, tokenizer = ke.models.load(
        arguments.model or ke.data.demo_model(),
        num_labels=len(train.label_names),
        library=arguments.library,
    )
    batches = static(train, tokenizer)
    updates = batches.stats.batches * arguments.epochs
    rate = ke.schedules.warmup_linear(1e-4, warmup_steps=updates // 10, total_steps=updates)
    keras = ke.flavor.of(model).keras
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY, library=model),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # A TPU compiles everything anyway; the rehearsal has to be told.
        jit_compile=True,
        steps_per_execution=arguments.steps_per_execution,
    )
if arguments.microbatch_size:
    ke.accumulate(model, microbatch_size=arguments.microbatch_size)
shapes = {spec.shape for spec in batches.element_spec[0].values()}
print(f"every batch: {shapes}, {arguments.steps_per_execution} steps per call")
# `repeat` and `steps_per_epoch`: the number of steps must be known in advance on a TPU.
model.fit(
    batches.repeat(),
    steps_per_epoch=batches.stats.batches,
    epochs=arguments.epochs,
    shuffle=False,
    verbose=2,
)
if len(test) >= arguments.batch_size:
    results = model.evaluate(static(test, tokenizer), return_dict=True, verbose=0)
    print(f"accuracy: {results['accuracy']:.2%}")
