"""A strategy of one replica trains like no strategy at all.

That is the strategy of every machine with one GPU, and of a worker that is alone.
"""

import functools

import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import SMALL, assert_same, assert_same_history, batches, compiled, sample_weights

import keras_efficient as ke

STRATEGIES = {
    "OneDeviceStrategy": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
    "MirroredStrategy": lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
    "MultiWorkerMirroredStrategy": tf.distribute.MultiWorkerMirroredStrategy,
}
METHODS = {
    "accumulate": lambda model: ke.accumulate(model, 2),
    "single microbatch": lambda model: ke.accumulate(model, 1),
    "auto": lambda model: ke.accumulate(model, microbatch_size="auto"),
    "sam": ke.sam,
    "prune": lambda model: ke.prune(model, 0.5),
    "quantize_aware": ke.quantize_aware,
    "EMA": lambda model: ke.callbacks.EMA(decay=0.9),
    "GradientNorm": lambda model: ke.callbacks.GradientNorm(),
    "BatchSizeSchedule": lambda model: ke.callbacks.BatchSizeSchedule({0: 1, 1: 2}),
}


def run(library, method, strategy, jit_compile=False):
    tf.keras.utils.set_random_seed(0)
    with strategy.scope():
        model = compiled(library, SMALL[library].make(), jit_compile=jit_compile)
    callback = METHODS[method](model)
    callbacks = [callback] if method[0].isupper() else None
    x, y = SMALL[library].batch(21)
    data = batches(x, y, sample_weights(21), batch_size=10)
    history = model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks).history
    return model, history | {"evaluated": model.evaluate(data, verbose=0)}


@functools.cache
def plain(library, method, jit_compile):
    return run(library, method, tf.distribute.get_strategy(), jit_compile)


@sampled(4)
@pytest.mark.parametrize(
    "library, strategy, method, jit_compile",
    covering(
        SMALL,
        STRATEGIES,
        METHODS,
        [False, True],
        strength=1,
        keep=lambda library, strategy, method, jit: (
            not (
                # Refused: a worker cannot make the others repeat a batch.
                method == "auto" and strategy.startswith("MultiWorker")
            )
        ),
    ),
)
def test_strategy_of_one_replica(library, strategy, method, jit_compile):
    expected, expected_history = plain(library, method, jit_compile)
    model, history = run(library, method, STRATEGIES[strategy](), jit_compile)
    assert_same(model, expected)
    assert_same_history(history, expected_history)
