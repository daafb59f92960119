"""Train a small Transformer on movie reviews with layer or batch normalisation.

    python examples/normalisation.py --normalisation batch --place before [--library tf_keras]

Ran on a 2-core CPU, all four kinds, both libraries. Not run: GPU, TPU, several devices.
`benchmarks/normalisation.py` compares them over seeds; see docs/batch-normalisation.md.
"""

import argparse

import tensorflow as tf

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--normalisation", default="layer", choices=("layer", "batch"))
parser.add_argument("--place", default="before", choices=("before", "after"), help="of a sublayer")
parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
parser.add_argument("--data", help="CSV, TSV or JSONL with columns text and label [movie reviews]")
parser.add_argument("--model", help="folder with a tokenizer [MiniLM]")
parser.add_argument("--limit", type=int, help="use this many records [all]")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--seed", type=int, default=0, help="of the weights, dropout and order")
arguments = parser.parse_args()
keras = ke.flavor.get(arguments.library).keras
layers = keras.layers
keras.utils.set_random_seed(arguments.seed)
LENGTH, WIDTH = 64, arguments.width

# Data, with position numbers from 1; padding has id 0 and position 0.
records = ke.data.read_records(arguments.data or ke.data.demo_reviews())
if arguments.limit:
    _, records = ke.data.split(records, validation=arguments.limit)
train, test = ke.data.split(ke.data.require_classes(records), validation=0.1)
folder = arguments.model or ke.data.demo_model()
tokenizer = ke.data.Tokenizer.from_directory(folder, inputs={"ids": "ids"})


def batches(part, **options):
    def with_positions(features, labels):
        ids = features["ids"]
        positions = tf.where(ids > 0, tf.range(1, tf.shape(ids)[1] + 1), 0)
        return {"ids": ids, "positions": positions}, labels

    return ke.data.text(part, tokenizer, max_length=LENGTH, **options).map(with_positions)


# Model: `mask_zero` creates the mask that attention, normalisation and pooling use.
def normalised(x):
    if arguments.normalisation == "layer":
        return layers.LayerNormalization(epsilon=1e-6)(x)
    return ke.layers.MaskedBatchNormalization(library=arguments.library, momentum=0.9)(x)


def with_sublayer(x, sublayer):
    if arguments.place == "before":
        return layers.add([x, layers.Dropout(0.1)(sublayer(normalised(x)))])
    return normalised(layers.add([x, layers.Dropout(0.1)(sublayer(x))]))


vocabulary = 1 + max(int(ids.max()) for ids in tokenizer.encode(records.texts, LENGTH))
inputs = {name: layers.Input((None,), dtype="int32", name=name) for name in ("ids", "positions")}
tokens = layers.Embedding(vocabulary, WIDTH, mask_zero=True)(inputs["ids"])
positions = layers.Embedding(LENGTH + 1, WIDTH, mask_zero=True)(inputs["positions"])
x = layers.add([tokens, positions])
for _ in range(arguments.layers):
    x = with_sublayer(x, lambda x: layers.MultiHeadAttention(4, WIDTH // 4)(x, x))
    x = with_sublayer(x, lambda x: layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(x)))
x = normalised(x) if arguments.place == "before" else x
model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
data = batches(train, batch_size=64, seed=arguments.seed)
model.fit(data, epochs=arguments.epochs, shuffle=False, verbose=2)
results = model.evaluate(batches(test, batch_size=64, shuffle=False), return_dict=True, verbose=0)
print(f"{arguments.normalisation}, {arguments.place}: accuracy {results['accuracy']:.2%}")
