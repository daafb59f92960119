"""The checksum of a run's data: which changes it must detect, and which it must ignore."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering

from keras_efficient.training._data_checksum import DataChecksum, batch_hash

RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 1000, (6, 5)).astype("int32")
LABELS = np.arange(6, dtype="int32")


def of(*batch):
    return int(batch_hash(tuple(map(tf.constant, batch))))


def test_examples_add_up_in_any_order_and_padding_is_nothing():
    whole = of(IDS, LABELS)
    parts = of(IDS[:2], LABELS[:2]) + of(IDS[2:], LABELS[2:])
    assert (whole - parts) % 2**64 == 0
    assert of(IDS[::-1], LABELS[::-1]) == whole
    assert of(np.pad(IDS, [(0, 0), (0, 3)]), LABELS) == whole


def test_anything_else_is_another_batch():
    swapped, changed = IDS.copy(), IDS.copy()
    swapped[0, 0], swapped[1, 0] = IDS[1, 0], IDS[0, 0]
    changed[3, 2] += 1
    seen = {of(*batch) for batch in [
        (IDS, LABELS), (swapped, LABELS), (changed, LABELS), (IDS, LABELS + 1),
        (IDS[:, ::-1].copy(), LABELS), (IDS[:5], LABELS[:5]), (LABELS, IDS),
    ]}  # fmt: skip
    assert len(seen) == 7


def test_the_order_of_batches_counts():
    sums = []
    for order in ([0, 1, 2], [1, 0, 2]):
        check = DataChecksum(
            type("Model", (), {"distribute_strategy": tf.distribute.get_strategy()})
        )
        for start in order:
            check((tf.constant(IDS[start : start + 2]), None))
        sums.append(check.read())
    assert sums[0] != sums[1]


@pytest.mark.parametrize(
    "dtype, jit_compile",
    covering(
        ["float16", "bfloat16", "float32", "float64", "bool", "uint8", "int64"],
        [True, False],
        strength=1,
    ),
)
def test_every_dtype(dtype, jit_compile):
    values = tf.cast(IDS % 2, dtype)
    run = tf.function(batch_hash, jit_compile=jit_compile)
    assert int(run(values)) == int(batch_hash(values)) != int(batch_hash(values[::-1, ::-1]))


def test_strings_ragged_and_sparse():
    texts, others = tf.constant(["a", "b"]), tf.constant(["a", "c"])
    assert int(batch_hash(texts)) != int(batch_hash(others))
    ragged = tf.ragged.constant([[1, 2], [3]])
    assert int(batch_hash(ragged)) == int(batch_hash(ragged.to_tensor()))
    sparse = tf.sparse.from_dense([[0, 1], [2, 0]])
    assert int(batch_hash(sparse)) != int(batch_hash(tf.sparse.from_dense([[1, 0], [2, 0]])))


def test_a_large_example_is_sampled():
    image = RNG.random((2, 200, 200, 3)).astype("float32")
    other = image + 1e-3
    assert of(image) != of(other)
