"""The choice of the dtype policy, and the layers that stay in float32 under it."""

import bert_folder
import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.dtype_policies import _mixed_precision as mixed_precision

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])


@pytest.fixture(autouse=True)
def float32_again():
    yield
    for library in ("keras", "tf_keras"):
        keras_of(library).mixed_precision.set_global_policy("float32")


def policy(library):
    keras = keras_of(library)
    if library == "keras":
        return keras.config.dtype_policy().name
    return keras.mixed_precision.global_policy().name


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(9, 0)], "mixed_bfloat16"),
        ([(8, 0), (8, 9)], "mixed_bfloat16"),
        ([(8, 0), (7, 5)], "mixed_float16"),
        ([(7, 0)], "mixed_float16"),
        ([(6, 1), (8, 0)], "float32"),
        ([(0, 0)], "float32"),
    ],
)
def test_the_weakest_gpu_decides(capabilities, expected):
    chosen = mixed_precision.for_gpus(capabilities)
    assert chosen.policy == expected
    assert ".".join(map(str, min(capabilities))) in chosen.reason


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "amx_bf16", "avx512_bf16"}, "mixed_bfloat16"),
        ({"avx512_bf16"}, "mixed_bfloat16"),
        ({"avx2", "avx512f"}, "float32"),
        (set(), "float32"),
    ],
)
def test_cpus(flags, expected):
    assert mixed_precision.for_cpu(flags).policy == expected


def test_auto_looks_at_tpus_then_gpus_then_the_cpu(monkeypatch):
    monkeypatch.setattr(mixed_precision, "_cpu_flags", lambda: {"amx_bf16"})
    assert "amx_bf16" in str(ke.mixed_precision("auto"))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a gpu"])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": (7, 5)}
    )
    assert ke.mixed_precision("auto").policy == policy("keras") == "mixed_float16"
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a tpu"])
    assert ke.mixed_precision().policy == policy("keras") == "mixed_bfloat16"


@both
def test_a_policy_is_set_in_one_library_only(library):
    other = {"keras": "tf_keras", "tf_keras": "keras"}[library]
    chosen = ke.mixed_precision("mixed_bfloat16", library=library)
    assert str(chosen) == "mixed_bfloat16: as requested"
    assert policy(library) == "mixed_bfloat16"
    assert policy(other) == "float32"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"`policy` must be 'auto' or one of .* Received: 'fp16'"):
        ke.mixed_precision("fp16")
    with pytest.raises(ValueError, match="`library` must be one of"):
        ke.mixed_precision("float32", library="torch")
    assert policy("keras") == policy("tf_keras") == "float32"


@sampled()
@both
def test_bert_in_bfloat16_has_float32_logits_loss_and_softmax(library, tmp_path):
    folder = bert_folder.write(tmp_path / "bert")
    ke.mixed_precision("mixed_bfloat16", library=library)
    model, tokenizer = ke.models.load(folder, library=library)
    keras = keras_of(library)
    output = model(bert_folder.features(tokenizer))
    logits = getattr(output, "logits", output)
    assert logits.dtype == tf.float32
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert loss(np.zeros(len(logits)), logits).dtype == tf.float32
    layers = list(model._flatten_layers())
    softmax = [layer for layer in layers if isinstance(layer, keras.layers.Softmax)]
    assert all(layer.compute_dtype == "float32" for layer in softmax)
    if library == "keras":
        assert len(softmax) == bert_folder.LAYERS
    # The rest does compute in bfloat16, from float32 variables.
    dense = [layer for layer in layers if hasattr(layer, "kernel")]
    assert sum(layer.compute_dtype == "bfloat16" for layer in dense) >= 6 * bert_folder.LAYERS
    assert {tf.as_dtype(w.dtype) for w in model.trainable_variables} == {tf.float32}


@both
def test_layer_normalization_computes_in_float32(library):
    layer = keras_of(library).layers.LayerNormalization(dtype="mixed_bfloat16", epsilon=1e-6)
    rng = np.random.default_rng(0)
    # Exact in bfloat16, but neither their sum nor the sum of their squares is.
    x = rng.integers(192, 256, (4, 512)).astype("float64")
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    found = tf.cast(layer(tf.constant(x, tf.bfloat16)), tf.float32)
    # The remaining error is the rounding of the result to bfloat16.
    assert np.abs(found - expected).max() < 2**-8 * np.abs(expected).max()


@pytest.mark.skipif(
    "avx512f" not in mixed_precision._cpu_flags(),
    reason="without AVX-512 TensorFlow does not use oneDNN's softmax for bfloat16",
)
def test_tensorflows_bfloat16_softmax_is_float32s_rounded():
    equal = tf.nn.softmax(tf.zeros((1, 512), tf.bfloat16))
    assert float(tf.reduce_sum(tf.cast(equal, tf.float32))) == 1.0
    x = tf.cast(np.random.default_rng(0).normal(0, 3, (8, 512)), tf.bfloat16)
    rounded = tf.cast(tf.nn.softmax(tf.cast(x, tf.float32)), tf.bfloat16)
    found = tf.cast(tf.nn.softmax(x), tf.float32)
    np.testing.assert_allclose(found, tf.cast(rounded, tf.float32), rtol=2**-7)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("name", ["keras-functional", "tf_keras-functional"])
def test_float16_with_accumulation_and_loss_scaling(name):
    specimen = next(specimen for specimen in ZOO if specimen.name == name)
    keras = keras_of(specimen.library)
    x, y = specimen.batch(12)

    def run(k):
        ke.mixed_precision("mixed_float16", library=specimen.library)
        model = specimen.make()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
        ke.accumulate(model, k)
        losses = model.fit(x, y, epochs=8, batch_size=12, verbose=0).history["loss"]
        assert "LossScale" in type(model.optimizer).__name__
        return np.array(losses)

    plain, accumulated = run(None), run(3)
    # The first scales (2^15) may overflow; then both train alike.
    assert np.isfinite(accumulated).all()
    assert accumulated[-1] < accumulated[0] - 1e-3
    np.testing.assert_allclose(accumulated, plain, rtol=0.02)
