"""Two replicas with two microbatches each are one device with one batch, in every model of the zoo.

21 weighted examples in batches of 10: the last batch has one, and leaves a replica without any.
"""

import functools

import pytest
from covering import sampled
from fit_helpers import (
    SMALL,
    assert_same,
    assert_same_history,
    batches,
    compiled,
    mirrored,
    moved,
    sample_weights,
)
from zoo import ZOO, full_except

import keras_efficient as ke

EXAMPLES, BATCH = 21, 10
BY_NAME = {specimen.name: specimen for specimen in ZOO} | SMALL


def run(name, replicas=1, k=None, jit_compile=False):
    specimen = BY_NAME[name]
    with mirrored(replicas).scope():
        model = compiled(specimen.library, specimen.make(), jit_compile=jit_compile)
    before = model.get_weights()
    ke.accumulate(model, k)
    data = batches(*specimen.batch(EXAMPLES), sample_weights(EXAMPLES), batch_size=BATCH)
    history = model.fit(data, epochs=2, shuffle=False, verbose=0).history
    assert moved(before, model) > 1e-2
    return model, history


@functools.cache
def plain(name):
    return run(name)


@sampled()
@pytest.mark.parametrize("specimen", full_except("keras-functional", "tf_keras-subclassed"))
def test_replicas_with_microbatches_equal_one_device(specimen):
    expected, expected_history = plain(specimen.name)
    model, history = run(specimen.name, 2, 2)
    assert_same(model, expected)
    assert_same_history(history, expected_history)


@pytest.mark.full
@pytest.mark.parametrize("name", [*SMALL, "tf_keras-functional"])
def test_replicas_with_microbatches_equal_one_device_under_xla(name):
    model, history = run(name, 2, 2, jit_compile=True)
    assert_same(model, plain(name)[0])
    assert_same_history(history, plain(name)[1])
