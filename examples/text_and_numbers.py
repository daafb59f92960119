"""Classify texts that come with numbers, by one model of two inputs; export it as int8.

    python examples/text_and_numbers.py [--epochs 2] [--limit 400] [--text-alone]

Each text is a snippet of a movie review, an editorial, a review of a product or a tweet, which is
to be told; its numbers are how positive people found it, from -4 to 4, and its length in
characters. MiniLM reads the text, a Dense layer the numbers, and the head both.

Ran on a 2-core CPU with MiniLM and 1,600 texts. Not run: GPU, TPU, several devices.
"""

import argparse
import csv

import keras
import numpy as np

import keras_efficient as ke

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="folder of a BERT-like model [MiniLM]")
parser.add_argument("--limit", type=int, default=1600, help="use this many texts [1,600]")
parser.add_argument("--epochs", type=int, default=2, help="half as many follow for pruning")
parser.add_argument("--length", type=int, default=48, help="tokens per text [48]")
parser.add_argument("--text-alone", action="store_true", help="zeros in place of the numbers")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="saved_models/text_and_numbers")
arguments = parser.parse_args()
ke.exporters.check_destination(arguments.output)

SOURCES = ("movies", "news", "products", "tweets")
keras.utils.set_random_seed(arguments.seed)


def features_and_labels():
    """Return features by name and labels, in a fixed permutation."""
    rows = []
    for label, source in enumerate(SOURCES):
        with open(ke.data.demo_ratings(source), encoding="utf-8", newline="") as file:
            rows += [(row["text"], float(row["rating"]), label) for row in csv.DictReader(file)]
    order = np.random.default_rng(0).permutation(len(rows))[: arguments.limit]
    texts, ratings, labels = zip(*(rows[i] for i in order), strict=True)
    ids = tokenizer.encode(texts, max_length=arguments.length)
    ids = keras.utils.pad_sequences(ids, padding="post")  # of MiniLM's vocabulary, 0 is padding
    features = {"token_ids": ids, "padding_mask": (ids > 0).astype("int32")}
    features["segment_ids"] = np.zeros_like(ids)
    numbers = np.array([ratings, [np.log(len(text)) for text in texts]], "float32").T
    # Numbers of the size of the text's vector. Serve them on the same scale.
    features["numbers"] = (numbers - numbers.mean(0)) / numbers.std(0)
    if arguments.text_alone:
        features["numbers"] *= 0
    return features, np.array(labels, "int32")


# The classifier's own head is not used.
classifier, tokenizer = ke.models.load(
    arguments.model or ke.data.demo_model(), num_labels=len(SOURCES), library="keras"
)
backbone = classifier.backbone
features, labels = features_and_labels()
count = len(labels) * 3 // 4
train, test = (
    ({name: value[part] for name, value in features.items()}, labels[part])
    for part in (slice(count), slice(count, None))
)

# The backbone's inputs again, so that it stays one layer of the model.
inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in backbone.input}
numbers = inputs["numbers"] = keras.Input((2,), name="numbers")
both = keras.layers.Concatenate()(
    [
        backbone({name: x for name, x in inputs.items() if name != "numbers"})["pooled_output"],
        keras.layers.Dense(32, "gelu", name="numbers_projection")(numbers),
    ]
)
model = keras.Model(inputs, keras.layers.Dense(len(SOURCES), name="logits")(both))


def fit(epochs, rate):
    """Train the model, and return its accuracy on the held-out texts."""
    steps = epochs * -(-count // 32)
    rate = ke.schedules.warmup_linear(rate, warmup_steps=steps // 10, total_steps=steps)
    model.compile(
        ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*train, batch_size=32, epochs=epochs, verbose=0)
    return model.evaluate(*test, batch_size=64, verbose=0, return_dict=True)["accuracy"]


print(ke.unpad(model))
ke.accumulate(model, microbatch_size=16)
print(f"float: {fit(arguments.epochs, 1e-4):.1%}")

some = {name: value[:256] for name, value in train[0].items()}
# The blocks alone: a group of 2:4 is four inputs, and there are two numbers.
criterion = ke.compression.Reconstruction(some)
print(ke.prune(model, pattern="2:4", criterion=criterion, layers="transformer_layer"))
print(f"2:4: {fit(max(1, arguments.epochs // 2), 5e-5):.1%}")

print(ke.calibrate(model, some, method="mse"))
report = ke.export(
    model,
    arguments.output,
    sample={name: value[:16] for name, value in train[0].items()},
    quantize="int8",
    labels=SOURCES,
    evaluate=ke.exporters.Evaluation(test, max_drop=0.02),
)
print(report)
print(f"2:4, int8: {report.accuracy:.1%} when served, {report.weight_bytes:,} bytes of weights")
