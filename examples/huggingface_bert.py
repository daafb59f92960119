"""A Hugging Face TF script in the style of transformers' documentation, with this package added.

    python examples/huggingface_bert.py [--model distilbert-base-uncased] [--limit 400]
    keras-efficient launch --workers 2 examples/huggingface_bert.py

`compile` gets no loss: the model computes its own from the labels among its inputs, in its own
`train_step`. The lines with `ke.` are the additions.

Ran on a 2-core CPU with MiniLM from a folder, 400 reviews, one process and two workers. Not run:
GPU, TPU, names over the network.
"""

import argparse

import tensorflow as tf

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="name or folder of a Hugging Face model [MiniLM]")
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--run", default="runs/huggingface_bert", help="where the run is kept")
arguments = parser.parse_args()

strategy = ke.strategy("auto", seed=0)  # one device, many, or many workers: the rest is the same

import transformers  # noqa: E402

records = ke.data.read_records(ke.data.demo_reviews())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.1)

name = arguments.model or str(ke.data.demo_model())
tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def encoded(records):
    """Batches with the labels among the features, where the model looks for them."""
    features = dict(
        tokenizer(
            list(records.texts), truncation=True, max_length=64, padding=True, return_tensors="np"
        )
    )
    data = tf.data.Dataset.from_tensor_slices(features | {"labels": records.labels})
    return data.batch(arguments.batch_size)


with strategy.scope():
    # Unlike transformers 4.54 to 4.57, this loads PyTorch safetensors into a TF model.
    model, _ = ke.models.load(name, num_labels=len(train.label_names), library="tf_keras")
    optimizer, _ = transformers.create_optimizer(5e-5, num_train_steps=1000, num_warmup_steps=10)
    model.compile(optimizer=optimizer)
ke.accumulate(model, microbatch_size=8)
model.fit(
    encoded(train),
    validation_data=encoded(test),
    epochs=arguments.epochs,
    verbose=2 if ke.distribute.is_chief() else 0,
    callbacks=[ke.callbacks.Resume(arguments.run, every_steps=100)],
)
