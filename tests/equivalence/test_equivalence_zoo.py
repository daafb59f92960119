"""Two replicas with two microbatches each are one device with one batch, in every model of the zoo.

21 weighted examples in batches of 10: the last batch has one, and leaves a replica without any.
"""

import functools

import pytest
from fit_helpers import (
    assert_same,
    assert_same_history,
    batches,
    compiled,
    mirrored,
    moved,
    sample_weights,
)
from zoo import ZOO

import keras_efficient as ke

EXAMPLES, BATCH = 21, 10
BY_NAME = {specimen.name: specimen for specimen in ZOO}
LARGE = ("hugging-face-bert", "model-garden-bert")
XLA = ("keras-sequential", "tf_keras-functional")


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


@pytest.mark.parametrize(
    "name",
    [
        # Half a minute each: most of it is tracing.
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in BY_NAME
    ],
)
def test_replicas_with_microbatches_equal_one_device(name):
    model, history = run(name, 2, 2)
    assert_same(model, plain(name)[0])
    assert_same_history(history, plain(name)[1])


@pytest.mark.parametrize("name", XLA)
def test_replicas_with_microbatches_equal_one_device_under_xla(name):
    model, history = run(name, 2, 2, jit_compile=True)
    assert_same(model, plain(name)[0])
    assert_same_history(history, plain(name)[1])
