"""k microbatches are one batch, in every model of the zoo.

34 examples in batches of 12: the last batch has 10, which neither 3 nor 8 divides. Examples are
weighted, and six updates follow each other.
"""

import functools

import pytest
from fit_helpers import (
    assert_same,
    assert_same_history,
    compiled,
    fit,
    moved,
    sample_weights,
)
from zoo import ZOO

import keras_efficient as ke

BY_NAME = {specimen.name: specimen for specimen in ZOO}
SPLITS = [
    {"microbatches": 1},
    {"microbatches": 2},
    {"microbatches": 3},
    {"microbatches": 8},
    {"microbatch_size": 5},
]


@functools.cache
def plain_run(name):
    return run(name)


def run(name, *, data=(34, 12), **split):
    specimen, (examples, batch_size) = BY_NAME[name], data
    jit_compile = split.pop("jit_compile", False)
    model = compiled(specimen.library, specimen.make(), jit_compile=jit_compile)
    if split:
        ke.accumulate(model, **split)
    x, y = specimen.batch(examples)
    history = fit(model, x, y, sample_weights(examples), batch_size=batch_size, epochs=2)
    return model, history


@pytest.mark.parametrize("name", BY_NAME)
def test_microbatches_equal_one_batch(name):
    plain, history = plain_run(name)
    assert moved(BY_NAME[name].make().get_weights(), plain) > 1e-2
    # The large models are slow to trace, and see what the others do not in any split.
    for split in SPLITS[2:] if "bert" in name else SPLITS:
        model, accumulated = run(name, **split)
        assert_same(model, plain)
        assert_same_history(accumulated, history)
        assert int(model.optimizer.iterations) == 6


@pytest.mark.parametrize("name", ["keras-sequential", "tf_keras-functional"])
def test_microbatches_equal_one_batch_under_xla(name):
    plain, history = run(name, data=(20, 10))
    model, accumulated = run(name, data=(20, 10), microbatches=3, jit_compile=True)
    assert_same(model, plain)
    assert_same_history(accumulated, history)
