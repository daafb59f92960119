"""Five updates give the same weights for every split, number of replicas and compilation.

The reference is plain `fit` on one device. Texts are of unequal length, so that microbatches and
replicas weigh unequally; one text is empty; and the last batch has one example, which leaves a
replica without any.
"""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import batches, mirrored, moved
from zoo import CLASSES, keras_of

import keras_efficient as ke
from keras_efficient.training._microbatch_loop import sum_over

LIBRARIES = ("keras", "tf_keras")
TEXTS, BATCH, WORDS, WIDTH = 33, 8, 5, 8
LENGTHS = np.random.default_rng(1).permutation(np.arange(TEXTS) % (WORDS + 1))
#: ε is far above the rounding errors of gradients (1e-8): where a gradient is (nearly) zero, Adam
#: would divide rounding errors by their own size, and a sign would decide about a whole step.
#: LAMB's trust ratio and Adafactor do that whatever ε is: LAMB leaves biases out, and the attention
#: has no biases (that of the keys has a gradient of zero: softmax does not see it).
OPTIMIZERS = {
    "SGD": lambda library: ke.optimizers.SGD(0.3, library=library),
    "AdamW": lambda library: ke.optimizers.AdamW(
        0.02, weight_decay=0.1, epsilon=1e-3, library=library
    ),
    "LAMB": lambda library: ke.optimizers.LAMB(
        0.02, weight_decay=0.1, epsilon=1e-3, exclude=ke.optimizers.NO_DECAY, library=library
    ),
    "Adafactor": lambda library: ke.optimizers.Adafactor(
        0.02, relative_step=False, library=library
    ),
}


def tagger(library, attends=True):
    """A Transformer of one block that labels every token; it masks the padding.

    Without its attention for XLA, which takes seconds to compile it.
    """
    keras = keras_of(library)
    layers = keras.layers
    ids = layers.Input((None,), dtype="int32")
    # Few ids, so that rows are repeated. (`add` passes the mask on to the loss, `+` does not.)
    x = layers.Embedding(12, WIDTH, mask_zero=True)(ids)
    if attends:
        attention = layers.MultiHeadAttention(2, 4, use_bias=False)
        x = layers.LayerNormalization()(layers.add([x, attention(x, x)]))
    x = layers.LayerNormalization()(layers.add([x, layers.Dense(WIDTH, "gelu")(x)]))
    model = keras.Model(ids, layers.Dense(CLASSES)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def texts():
    rng = np.random.default_rng(2)
    ids = rng.integers(1, 12, (TEXTS, WORDS)).astype("int32")
    ids = np.where(np.arange(WORDS) < LENGTHS[:, None], ids, 0)
    return ids, rng.integers(0, CLASSES, (TEXTS, WORDS)).astype("int32")


def run(library, optimizer, attends, replicas=1, k=None, jit_compile=False):
    """The weights after five updates, and the losses."""
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = tagger(library, attends)
        model.compile(
            OPTIMIZERS[optimizer](library),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
    before = model.get_weights()
    ke.accumulate(model, k)
    history = model.fit(batches(*texts(), batch_size=BATCH), shuffle=False, verbose=0).history
    assert moved(before, model) > 1e-2
    assert int(model.optimizer.iterations.numpy()) == 5
    return model.get_weights(), history["loss"]


@functools.cache
def reference(library, optimizer, attends):
    return run(library, optimizer, attends)


def assert_equal_to_the_reference(library, optimizer, attends, *setting, atol=1e-5):
    """The weights to `atol`, and the loss, which is logged in float32."""
    weights, loss = run(library, optimizer, attends, *setting)
    expected, expected_loss = reference(library, optimizer, attends)
    for index, (a, b) in enumerate(zip(weights, expected, strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"weight {index}")
    np.testing.assert_allclose(loss, expected_loss, rtol=0, atol=1e-5)


@sampled()
@pytest.mark.parametrize(
    "library, optimizer, replicas, k, jit_compile",
    covering(LIBRARIES, OPTIMIZERS, (1, 2), (1, 4), (False, True)),
)
def test_five_updates(library, optimizer, replicas, k, jit_compile):
    """Pairwise under `make test`: every pair of levels of two factors occurs."""
    assert_equal_to_the_reference(library, optimizer, not jit_compile, replicas, k, jit_compile)


def test_under_xla_a_microbatch_is_no_larger_than_its_slice():
    """Not one of up to the whole batch's size, which XLA would pad to the whole batch."""
    kernel = tf.Variable(tf.ones((7, 3)))

    @tf.function(jit_compile=True, input_signature=[tf.TensorSpec([None, 7])])
    def step(x):
        size = -(-tf.shape(x)[0] // 4)
        product = lambda part: tf.reduce_sum(part @ kernel)  # noqa: E731
        return sum_over(product, x, size, tf.constant(0.0), static=True)

    for examples in (8, 1):
        x = tf.ones((examples, 7))
        np.testing.assert_allclose(step(x), examples * 21)
        program = step.experimental_get_compiler_ir(x)(stage="hlo")
        products = set(re.findall(r"f32\[([<=\d]+),3\]\S* dot\(", program))
        # (Without a remainder, that one's product is empty.)
        assert products - {"0"} == {str(-(-examples // 4))}


@pytest.fixture
def float64():
    def everywhere(dtype):
        for library in LIBRARIES:
            keras = keras_of(library)
            keras.backend.set_floatx(dtype)
            keras.mixed_precision.set_global_policy(dtype)
        reference.cache_clear()

    everywhere("float64")
    yield
    everywhere("float32")


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("library, replicas", covering(LIBRARIES, (1, 2), strength=1))
def test_five_updates_in_float64(library, replicas, float64):
    assert tagger(library).weights[0].dtype == "float64"
    assert_equal_to_the_reference(library, "SGD", True, replicas, 4, atol=1e-10)
