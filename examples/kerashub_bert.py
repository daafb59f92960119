"""A KerasHub script in the style of KerasHub's guides, with this package added.

    python examples/kerashub_bert.py [--preset bert_tiny_en_uncased] [--limit 400]
    keras-efficient launch --workers 2 examples/kerashub_bert.py

The inputs are strings, which KerasHub's own preprocessor tokenizes.
The lines with `ke.` are the additions.

Ran on a 2-core CPU with MiniLM from a folder, 400 reviews, one process and two workers. Not run:
GPU, TPU, presets over the network.
"""

import argparse

import numpy as np
import tensorflow as tf

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--preset", help="name or folder of a BERT preset [MiniLM]")
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--run", default="runs/kerashub_bert", help="where the run is kept")
arguments = parser.parse_args()

strategy = ke.strategy("auto", seed=0)  # one device, many, or many workers: the rest is the same

import keras  # noqa: E402
import keras_hub  # noqa: E402

records = ke.data.read_records(ke.data.demo_reviews())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(records, validation=0.1)


def strings(records):
    """Batches of (texts, labels), in the order of the records."""
    data = tf.data.Dataset.from_tensor_slices((list(records.texts), np.array(records.labels)))
    return data.batch(arguments.batch_size)


preset = arguments.preset or str(ke.data.demo_model())
with strategy.scope():
    classifier = keras_hub.models.BertTextClassifier.from_preset(
        preset,
        num_classes=len(train.label_names),
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor.from_preset(
            preset, sequence_length=64
        ),
    )
    classifier.compile(
        optimizer=ke.optimizers.AdamW(5e-5, exclude=ke.optimizers.NO_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
ke.accumulate(classifier, microbatch_size=8)
classifier.fit(
    strings(train),
    validation_data=strings(test),
    epochs=arguments.epochs,
    verbose=2 if ke.distribute.is_chief() else 0,
    callbacks=[ke.callbacks.Resume(arguments.run, every_steps=100)],
)
