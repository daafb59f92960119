"""k microbatches are one batch, in every model of the zoo.

34 examples in batches of 12: the last batch has 10, which neither 3 nor 8 divides. Examples are
weighted, and six updates follow each other.
"""

import functools

import pytest
from covering import covering, sampled
from fit_helpers import (
    SMALL,
    assert_same,
    assert_same_history,
    compiled,
    fit,
    moved,
    sample_weights,
)
from zoo import ZOO, full_except

import keras_efficient as ke

BY_NAME = {specimen.name: specimen for specimen in ZOO} | SMALL
SPLITS = [
    {"microbatches": 2},
    {"microbatches": 1},
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


#: Two models and every split of each library; own_steps and equivalence tests have the others.
MODELS = full_except(
    *("keras-sequential", "keras-subclassed", "kerashub-bert"),
    *("tf_keras-functional", "model-garden-bert"),
)


@sampled(3)
@pytest.mark.parametrize("specimen, split", covering(MODELS, SPLITS, strength=1))
def test_microbatches_equal_one_batch(specimen, split):
    plain, history = plain_run(specimen.name)
    assert moved(specimen.make().get_weights(), plain) > 1e-2
    model, accumulated = run(specimen.name, **split)
    assert_same(model, plain)
    assert_same_history(accumulated, history)
    assert int(model.optimizer.iterations) == 6


@sampled()
@pytest.mark.parametrize(
    "name",
    [
        "keras",
        "tf_keras",
        *(
            pytest.param(n, marks=pytest.mark.full)
            for n in ("keras-sequential", "tf_keras-functional")
        ),
    ],
)
def test_microbatches_equal_one_batch_under_xla(name):
    plain, history = run(name, data=(20, 10))
    model, accumulated = run(name, data=(20, 10), microbatches=3, jit_compile=True)
    assert_same(model, plain)
    assert_same_history(accumulated, history)
