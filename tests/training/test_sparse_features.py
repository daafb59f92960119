"""SparseTensor features are split into microbatches like dense ones."""

import numpy as np
import pytest
import tensorflow as tf
from fit_helpers import assert_same, assert_same_history
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.training._microbatch_loop import batch_size, sum_over

DENSE = np.random.default_rng(0).integers(0, 2, (10, 5)).astype("float32")
Y = np.arange(10) % 3


def test_slices_of_a_sparse_tensor_hold_their_own_rows():
    values = tf.sparse.from_dense(DENSE)
    seen = []

    @tf.function(input_signature=[(tf.SparseTensorSpec([None, 5]), tf.TensorSpec([None, 5]))])
    def summed(data):
        def part(data):
            sparse, dense = data
            seen.append(sparse.shape[1])
            products = tf.sparse.sparse_dense_matmul(sparse, tf.ones([5, 2]))
            same = tf.reduce_sum(tf.abs(tf.sparse.to_dense(sparse) - dense))
            return tf.reduce_sum(products), same, batch_size(sparse)

        return sum_over(part, data, 3, (0.0, 0.0, 0))

    total, difference, rows = summed((values, DENSE))
    assert (float(total), float(difference), int(rows)) == (2 * DENSE.sum(), 0.0, 10)
    assert seen == [5]


@pytest.mark.parametrize(
    ("library", "settings"),
    [("keras", {"microbatches": 3}), ("tf_keras", {"microbatch_size": "auto"})],
)
def test_a_model_with_sparse_features_trains_as_in_one_batch(library, settings):
    keras = keras_of(library)
    data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(DENSE), Y)).batch(10)

    def run(settings):
        x = keras.layers.Input((5,), sparse=True)
        model = keras.Model(x, keras.layers.Dense(3, kernel_initializer="ones")(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss)
        if settings:
            ke.accumulate(model, **settings)
        return model, model.fit(data, epochs=2, verbose=0).history

    (plain, expected), (model, found) = run(None), run(settings)
    assert_same(model, plain)
    assert_same_history(found, expected)
