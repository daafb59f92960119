"""What is wrong upstream, by its number in traps.md: when one fails, a workaround can go."""

import numpy as np
import tensorflow as tf
from training import assert_same, compiled, fit, moved
from zoo import ZOO, keras_of

import keras_efficient as ke

SPECIMEN = next(specimen for specimen in ZOO if specimen.name == "keras-sequential")


def test_trap_1_keras_averages_microbatch_means():
    """Microbatches of 6 and 2 examples: Keras 3 takes them for equal, a batch of 8 does not."""
    keras = keras_of("keras")
    x, y = SPECIMEN.batch(8)
    large = compiled("keras", SPECIMEN.make())
    fit(large, x, y, batch_size=8)

    upstream = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    theirs = compiled("keras", SPECIMEN.make(), upstream)
    fit(theirs, x, y, batch_size=6)
    assert moved(large.get_weights(), theirs) > 1e-3

    ours = ke.accumulate(compiled("keras", SPECIMEN.make()), microbatch_size=6)
    fit(ours, x, y, batch_size=8)
    assert_same(ours, large)


def test_trap_4_keras_takes_a_schedule_step_per_microbatch():
    """A rate of 0 after 10 updates: Keras 3 is there after 2 updates of 5 microbatches."""
    keras = keras_of("keras")

    def decay():
        return keras.optimizers.schedules.PolynomialDecay(0.5, 10, end_learning_rate=0.0)

    x, y = SPECIMEN.batch(40)
    upstream = keras.optimizers.SGD(decay(), gradient_accumulation_steps=5)
    theirs = compiled("keras", SPECIMEN.make(), upstream)
    fit(theirs, x, y, batch_size=4)
    assert int(theirs.optimizer.iterations) == 2
    assert float(theirs.optimizer.learning_rate) == 0.0

    ours = compiled("keras", SPECIMEN.make(), keras.optimizers.SGD(decay()))
    ke.accumulate(ours, 5)
    fit(ours, x, y, batch_size=20)
    assert int(ours.optimizer.iterations) == 2
    np.testing.assert_allclose(float(ours.optimizer.learning_rate), 0.5 * 0.8, rtol=1e-6)


def test_keras_adam_squares_the_gradients_of_a_repeated_row_one_by_one():
    """An embedding's row that occurs twice: v gets g1² + g2² instead of (g1 + g2)²."""
    keras = keras_of("keras")
    table = keras.Variable(np.zeros((2, 1), "float32"))
    adam = keras.optimizers.Adam(0.1, beta_2=0.5)
    adam.build([table])
    adam.apply([tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), (2, 1))])
    second_moment = next(v for v in adam.variables if "velocity" in v.path)
    np.testing.assert_allclose(second_moment.numpy()[0], 0.5 * (1 + 1))
