"""Validation by the averages of batch normalization, after a few updates of a small Transformer.

    python benchmarks/batch_statistics.py [--seeds 3]

A made-up task: whether more than half of a text's words are from the first half of the vocabulary.
One trained model is evaluated with four statistics: averages as the libraries keep them, which
start at 0 and 1; those of `MaskedBatchNormalization`; those of `estimate_batch_statistics` over 20
batches of the training data; and the statistics of the validation data itself. A model with layer
normalization is trained alike.
"""

import argparse

import keras
import numpy as np

import keras_efficient as ke

BATCH, LENGTH, WORDS, WIDTH = 32, 16, 50, 32


def texts(count, rng):
    ids = rng.integers(1, WORDS, (count, LENGTH))
    ids[np.arange(LENGTH) >= rng.integers(6, LENGTH + 1, count)[:, None]] = 0
    first, second = (ids > 0) & (ids < WORDS // 2), ids >= WORDS // 2
    return ids, (first.sum(1) > second.sum(1)).astype("int32")


def transformer(normalization):
    layers = keras.layers
    ids = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH, mask_zero=True)(ids)
    for _ in range(2):
        x = normalization()(layers.add([x, layers.MultiHeadAttention(4, WIDTH // 4)(x, x)]))
        inner = layers.Dense(2 * WIDTH, "relu")(x)
        x = normalization()(layers.add([x, layers.Dense(WIDTH)(inner)]))
    model = keras.Model(ids, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"], jit_compile=False)
    return model


def statistics(model, train, held_out):
    """Return the accuracy with each kind of statistics; the model stays as it was."""

    def accuracy():
        return model.evaluate(*held_out, verbose=0)[1]

    before = model.get_weights()
    found = {"averages": accuracy()}
    for layer in model.layers:
        if hasattr(layer, "moving_weight"):
            *affine, mean, variance, weight = layer.get_weights()
            layer.set_weights([*affine, weight * mean, weight * variance + 1 - weight, weight])
    found["averages from 0 and 1"] = accuracy()
    for name, (ids, _), size in [("estimated", train, BATCH), ("of the batch", held_out, None)]:
        size = size or len(ids)
        batches = [ids[i : i + size] for i in range(0, len(ids), size)]
        ke.layers.estimate_batch_statistics(model, batches, batches=20)
        found[name] = accuracy()
    model.set_weights(before)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    x, y = texts(200 * BATCH, rng)
    held_out = texts(2000, rng)
    for seed in range(arguments.seeds):
        keras.utils.set_random_seed(seed)
        batch = transformer(ke.layers.MaskedBatchNormalization)
        layer = transformer(keras.layers.LayerNormalization)
        done = 0
        for updates in (25, 100, 200):
            part = slice(done * BATCH, updates * BATCH)
            for model in (batch, layer):
                model.fit(x[part], y[part], batch_size=BATCH, verbose=0)
            done = updates
            found = statistics(batch, (x[: updates * BATCH], y), held_out)
            found["layer normalization"] = layer.evaluate(*held_out, verbose=0)[1]
            values = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"seed {seed}, {updates} updates: {values}", flush=True)


if __name__ == "__main__":
    main()
