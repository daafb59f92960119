"""Weights are stored in their smallest form, and decoded to the same numbers."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from covering import covering
from in_process_export import in_process as in_process
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.exporters.inference_ops import smallest_encoding as module
from keras_efficient.exporters.inference_ops.bitmap import Bitmap
from keras_efficient.exporters.inference_ops.codebook import codebook, codebook_of_columns
from keras_efficient.exporters.inference_ops.encoding import Plain
from keras_efficient.exporters.inference_ops.loaded_tensor import LoadedTensor
from keras_efficient.exporters.inference_ops.packed_bits import pack_bits, unpack_bits
from keras_efficient.exporters.inference_ops.smallest_encoding import smallest_encoding
from keras_efficient.parametrize._parametrized_layer import transforms
from keras_efficient.versions._check_manifest import check_manifest

DTYPES = ("float32", "float16", ml_dtypes.bfloat16, "int8")
SHAPES = ((1,), (7,), (8,), (3, 5), (1, 17), (2, 3, 11))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_are_packed(bits):
    rng = np.random.default_rng(bits)
    for size in (1, 7, 8, 9, 64, 101):
        integers = rng.integers(0, 2**bits, size).astype("uint8")
        packed = pack_bits(integers, bits)
        assert packed.nbytes <= size * bits / 8 + bits.bit_count()
        np.testing.assert_array_equal(unpack_bits(tf.constant(packed), size, bits), integers)


def decoded(encoding):
    """Return what a graph makes of an encoding once, when it is loaded."""
    encoding.create("a/weight")
    loaded = LoadedTensor(encoding.decode, [encoding])
    return tf.function(loaded.value)().numpy()


@pytest.mark.parametrize("dtype, shape", covering(DTYPES, SHAPES, strength=1))
def test_every_form_holds_every_number(dtype, shape):
    rng = np.random.default_rng(0)
    few = rng.choice(np.arange(-3, 4), shape).astype(dtype)
    many = rng.integers(-100, 100, shape).astype(dtype)
    for array in (few, many, np.zeros(shape, dtype)):
        encodings = [Plain(array), codebook(array), Bitmap(array, Plain), Bitmap(array, codebook)]
        if len(shape) == 2:
            encodings.append(codebook_of_columns(array))
        for encoding in encodings:
            found = decoded(encoding)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found.view("uint8"), array.view("uint8"))


def test_the_smallest_form_is_chosen():
    rng = np.random.default_rng(0)
    shape = (96, 128)
    dense = rng.normal(size=shape).astype("float32")
    sparse = rng.random(shape) < 0.2
    clusters = rng.choice(dense[0, :32], shape)
    for array, form, bits in [
        (dense, "float32", 32),
        (dense * sparse, "bitmap and float32", 1 + 0.2 * 32),
        (clusters, "5-bit codebook of float32", 5),
        (clusters * sparse, "bitmap and 6-bit codebook of float32", 1 + 0.2 * 6),
        (rng.integers(-7, 8, shape).astype("int8"), "4-bit codebook of int8", 4),
        (rng.integers(-127, 128, shape).astype("int8"), "int8", 8),
        # Each column has 8 numbers, and a table of them.
        (
            rng.permuted(np.tile(rng.permuted(np.arange(-64, 64)), (8, 1)), axis=1)[
                rng.integers(0, 8, shape), np.arange(128)
            ].astype("int8"),
            "3-bit codebook of int8",
            3 + 8 * 8 / 96,
        ),
    ]:
        encoding = smallest_encoding(array)
        assert encoding.describe() == form
        assert 8 * encoding.bytes / array.size == pytest.approx(bits, rel=0.03)
        np.testing.assert_array_equal(decoded(encoding), array)
        # What saves little costs more than it saves.
        assert isinstance(smallest_encoding(array[:4]), Plain)


def test_negative_zeros_of_masks_are_zeros():
    array = np.where(np.arange(8192) % 8 == 0, np.float32(1.5), np.float32(-0.0))
    encoding = smallest_encoding(array)
    assert encoding.bytes <= 8192 / 8 + 8 + 4
    np.testing.assert_array_equal(decoded(encoding), array)


def model_of(library):
    """A text classifier whose kernels are large enough to be encoded."""
    keras = keras_of(library)
    layers = keras.layers
    keras.utils.set_random_seed(0)
    ids = layers.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(160, 96)(ids)
    x = x + layers.MultiHeadAttention(2, 48)(x, x)
    x = layers.Dense(160, activation="relu")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, layers.Dense(3)(x))


def features(seed=0):
    return np.random.default_rng(seed).integers(0, 160, (8, 6)).astype("int32")


def _zeros_and_clusters(model, x):
    ke.prune(model, 0.5)
    ke.cluster(model, 8, preserve_sparsity=True)
    ke.quantize_aware(model, activation_bits=None)


def _groups(model, x):
    ke.quantize_aware(model, weight_bits=4, group_size=32, activation_bits=None)


#: By method: the bits of a number of a kernel, stored as floats (None: all differ) and as integers.
METHODS = {
    "clusters": (lambda model, x: ke.cluster(model, 16), 4, 4 + 16 * 8 / 96),
    "80% zeros": (lambda model, x: ke.prune(model, 0.8), 1 + 0.2 * 32, 1 + 0.2 * 8),
    "2:4": (lambda model, x: ke.prune(model, pattern="2:4"), 1 + 0.5 * 32, 1 + 0.5 * 8),
    "4 bits": (lambda model, x: ke.calibrate(model, x, weight_bits=4), None, 4),
    "4 bits, groups": (_groups, None, 4 + 32 / 32),
    "zeros, clusters, 8 bits": (_zeros_and_clusters, None, 3 + 8 * 8 / 96),
}
#: By format, the difference allowed for outputs of about 1.
FORMATS = {None: 1e-6, "int8-weights": 1e-6, "bfloat16": 5e-2, "int8": 1e-1}
KERNELS, TABLE = 4 * 96 * 96 + 96 * 160, 160 * 96


def sensible(library, method, quantize):
    """Return whether a method and a format have something to do with each other."""
    return METHODS[method][1] is not None or quantize in ("int8-weights", "int8")


@pytest.mark.filterwarnings("ignore:quantize='int8' rounds the inputs")
@pytest.mark.parametrize(
    "library, method, quantize",
    covering(("keras", "tf_keras"), METHODS, FORMATS, strength=1, keep=sensible),
)
def test_exports_are_small_and_the_same(library, method, quantize, tmp_path, in_process):
    model, x = model_of(library), features()
    change, floats, integers = METHODS[method]
    change(model, x)
    report = ke.export(model, tmp_path / "m", sample=x, quantize=quantize, latency=False)
    assert report.max_abs_difference <= FORMATS[quantize]
    bits = {None: floats, "bfloat16": floats and (floats + 1) / 2}.get(quantize, integers)
    table = {None: 32, "bfloat16": 16}.get(quantize, integers if "4 bits" in method else 8)
    # Head, biases, scales and codebooks are small.
    assert report.weight_bytes <= (KERNELS * bits + TABLE * table) / 8 + 8192
    assert sum(report.storage.values()) == report.weight_bytes
    assert any("codebook" in form or "bitmap" in form for form in report.storage)
    assert check_manifest(report.directory)["metrics"]["storage"] == report.storage


@pytest.mark.parametrize(
    "library, method, quantize",
    covering(("keras", "tf_keras"), ("80% zeros", "clusters"), (None, "int8-weights"), strength=1),
)
def test_what_is_loaded_is_the_same_to_the_last_bit(
    library, method, quantize, tmp_path, in_process, monkeypatch
):
    """By TensorFlow twice, and in a session of TensorFlow 1, which TensorFlow Serving uses."""
    model, x = model_of(library), features()
    METHODS[method][0](model, x)
    small = ke.export(model, tmp_path / "m", sample=x, quantize=quantize, latency=False)
    monkeypatch.setattr(module, "_SHARE", 1.0)
    plain = ke.export(model, tmp_path / "m", sample=x, quantize=quantize, latency=False)
    assert small.weight_bytes < 0.8 * plain.weight_bytes
    assert stored(small.directory) < 0.9 * stored(plain.directory)
    expected = served(plain.directory, features(1))
    for _ in range(2):
        np.testing.assert_array_equal(served(small.directory, features(1)), expected)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(small.directory))
        signature = graph.signature_def["serving_default"]
        (given,), (output,) = signature.inputs.values(), signature.outputs.values()
        found = session.run(output.name, {given.name: features(1)})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def stored(folder):
    """The bytes of the weights' files; the graph of so small a model is larger than they are."""
    return sum(file.stat().st_size for file in (folder / "variables").iterdir())


def served(folder, x):
    function = tf.saved_model.load(str(folder)).signatures["serving_default"]
    (answer,) = function(inputs=tf.constant(x)).values()
    return answer.numpy()


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_merged_weights_are_encoded_and_dense_ones_are_not(library, tmp_path, in_process):
    model, x = model_of(library), features()
    dense = ke.export(model, tmp_path / "m", sample=x, latency=False)
    assert list(dense.storage) == ["float32"]
    ke.prune(model, 0.8)
    ke.merge(model)
    before = {id(layer): type(layer) for layer in model.layers}
    report = ke.export(model, tmp_path / "m", sample=x, latency=False)
    assert report.storage["bitmap and float32"] < 0.3 * 4 * KERNELS
    # The model is as it was.
    assert before == {id(layer): type(layer) for layer in model.layers}
    assert not transforms(model)
