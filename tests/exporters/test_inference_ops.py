"""Inference-only implementations of layers compute the same as the layers."""

import warnings
from contextlib import ExitStack, contextmanager

import numpy as np
import plain_block_models
import pytest
import tensorflow as tf
from covering import covering, sampled
from zoo import FEW, FEW_FIRST, ZOO

import keras_efficient as ke
from keras_efficient.architecture._activations import activation_of
from keras_efficient.architecture._self_attention import attention_heads, self_attention_projections
from keras_efficient.architecture._weights import all_weights
from keras_efficient.exporters import Features
from keras_efficient.exporters._flat_form import flat_form
from keras_efficient.exporters.inference_ops.attention import SelfAttention
from keras_efficient.exporters.inference_ops.embedding import LazyEmbeddingOp
from keras_efficient.exporters.inference_ops.matmul import (
    BFloat16MatMul,
    Int8MatMul,
    MatMul,
    joined,
    saturates,
)
from keras_efficient.exporters.inference_ops.substitution import rounded, substituted_layers
from keras_efficient.parametrize._parametrized_layer import parametrize_layer, parametrized_layers
from keras_efficient.parametrize._plain_model import folded_weights

#: Formats that substitute attention layers, and the difference allowed for outputs of about 1.
SUBSTITUTING = [
    pytest.param("bfloat16", 6e-2, id="bfloat16"),
    pytest.param("int8", 2e-2, id="int8"),
]
FORMATS = ("int8-weights", "bfloat16", "int8")


def padded(specimen, n=6):
    """A batch with padding where the model has a mask."""
    x = specimen.batch(n)[0]
    if isinstance(x, dict):
        for name in x:
            if "mask" in name:
                x[name] = np.tril(np.ones_like(x[name]), 2)[:n]
    return x


def traced(model, *batches):
    """Return the logits of each batch, computed in a graph, and its operations `{kind: number}`."""
    flavor = ke.flavor.of(model)

    def call(x):
        return flavor.call(model, x, training=False)

    function = tf.function(call, autograph=flavor.uses_autograph)
    concrete = function.get_concrete_function(tf.nest.map_structure(tf.constant, batches[0]))
    results = [function(tf.nest.map_structure(tf.constant, batch)) for batch in batches]
    kinds = [node.op for node in concrete.graph.as_graph_def().node]
    logits = [result["logits"] if isinstance(result, dict) else result for result in results]
    logits = [np.asarray(getattr(result, "logits", result)) for result in logits]
    return *logits, {kind: kinds.count(kind) for kind in set(kinds)}


@contextmanager
def as_exported(model, sample, quantize, substituted=True):
    """Let a model compute as exported, or with `substituted=False` what that is compared to."""
    features = Features(model, sample)
    reduce_range = quantize == "int8" and saturates()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "quantize='int8' rounds the inputs")
        form = stack.enter_context(flat_form(model, features))
        stack.enter_context(rounded(model, quantize, features, reduce_range))
        if substituted:
            stack.enter_context(substituted_layers(model, quantize, form))
        stack.enter_context(folded_weights(model))
        if substituted:
            stack.enter_context(form.on())
        yield


def exported(model, *batches, quantize):
    """Return what `traced` does of the model as it is exported."""
    with as_exported(model, batches[0], quantize):
        return traced(model, *batches)


def in_memory(model, batch, quantize):
    """Return the logits that an export is compared with."""
    with as_exported(model, batch, quantize, substituted=False):
        return traced(model, batch)[0]


@sampled()
@pytest.mark.parametrize("specimen", FEW_FIRST, ids=str)
def test_calibrated_models_compute_the_same(specimen):
    model, x = specimen.make(), padded(specimen)
    ke.calibrate(model, x)
    before, classes = model.get_weights(), [type(layer) for layer in model._flatten_layers()]
    seen, _ = traced(model, x)
    floats, _ = exported(model, x, quantize="int8-weights")
    np.testing.assert_allclose(floats, seen, rtol=0, atol=1e-6)
    integers, kinds = exported(model, x, quantize="int8")
    # One step of the ranges, where a number is beside a tie.
    np.testing.assert_allclose(integers, in_memory(model, x, "int8"), rtol=0, atol=2e-3)
    assert kinds["_QuantizedMatMul"] > 0
    # No product is left in floats, and queries, keys and values are one.
    assert not {"MatMul", "Einsum"} & set(kinds)
    attention = sum(
        self_attention_projections(layer) is not None for layer in model._flatten_layers()
    )
    assert kinds.get("BatchMatMulV2", 0) == 2 * attention
    # The model is unchanged afterwards.
    np.testing.assert_array_equal(traced(model, x)[0], seen)
    assert [type(layer) for layer in model._flatten_layers()] == classes
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@sampled(2)
@pytest.mark.parametrize("specimen, quantize", covering(ZOO, list(FORMATS), strength=1))
def test_models_without_ranges_are_close(specimen, quantize):
    model, x = specimen.make(), padded(specimen)
    seen, _ = traced(model, x)
    found, kinds = exported(model, x, quantize=quantize)
    assert 0 < np.abs(found - seen).max() < 1e-2
    assert ("_QuantizedMatMul" in kinds) == (quantize == "int8")
    np.testing.assert_array_equal(traced(model, x)[0], seen)
    assert not parametrized_layers(model) and "save" not in vars(model)


class Floats(MatMul):
    """A product in float32, so that what surrounds it can be compared closely."""

    weight = None

    @property
    def inputs(self):
        return self.weight.shape[0]

    def __call__(self, x):
        return x @ self.weight + self.bias


@sampled()
@pytest.mark.parametrize(
    "specimen",
    [
        s if s in FEW else pytest.param(s, marks=pytest.mark.full)
        for s in ZOO
        if "sequential" not in s.name
    ],
    ids=str,
)
def test_attention(specimen):
    model, x = specimen.make(), padded(specimen)
    seen, _ = traced(model, x)
    weights = {id(layer): w for w in all_weights(model) for layer, a in w.owners if a == "kernel"}
    count = 0
    for layer in list(model._flatten_layers()):
        inner = self_attention_projections(layer)
        if inner is None:
            continue
        heads, factor = attention_heads(layer)
        kernels, biases = [], []
        for part, times in zip(inner, (factor, 1, 1), strict=True):
            kernels.append(weights[id(part)].matrix(part.kernel).numpy() * times)
            biases.append(np.asarray(part.bias).reshape(-1) * times)
        matrix = Floats("qkv", np.concatenate(biases))
        object.__setattr__(matrix, "weight", np.concatenate(kernels, 1))
        part = SelfAttention(matrix, heads)
        parametrize_layer(layer, ke.flavor.of(model)).attach(part)
        count += 1
    assert count > 0
    found, kinds = traced(model, x)
    np.testing.assert_allclose(found, seen, rtol=0, atol=2e-6)
    assert kinds["BatchMatMulV2"] >= 2 * count


@sampled()
@pytest.mark.parametrize("quantize, atol", SUBSTITUTING)
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_attention_of_another_kind_is_left_alone(library, quantize, atol):
    keras = pytest.importorskip(library)
    a, b = keras.Input((4, 8)), keras.Input((5, 8))
    attend = keras.layers.MultiHeadAttention(2, 4)
    causal = keras.layers.MultiHeadAttention(2, 4)
    outputs = [attend(a, b), causal(a, a, use_causal_mask=True)]
    model = keras.Model([a, b], outputs)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(3, n, 8)).astype("float32") for n in (4, 5)]
    if quantize == "int8":
        ke.calibrate(model, [(x, 0)])
    seen = [np.asarray(y) for y in model(x)]
    with as_exported(model, x, quantize):
        found = [np.asarray(y) for y in tf.function(lambda: model(x))()]
    for y, z in zip(found, seen, strict=True):
        np.testing.assert_allclose(y, z, rtol=0, atol=atol)


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "gelu_approximate", "tanh"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_int8_products_are_those_of_numpy(activation, dynamic):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 48)).astype("float32")
    # Integers of 7 bits are exact on any CPU.
    largest = 63 if saturates() else 127
    integers = rng.integers(-largest, largest + 1, (48, 40)).astype("int8")
    scales = rng.uniform(0.001, 0.01, 40).astype("float32")
    bias = rng.normal(size=40).astype("float32")
    low, high = (float(x.min()), float(x.max())) if dynamic else (-1.5, 2.5)
    known = {"gelu_approximate": lambda y: tf.nn.gelu(y, approximate=True), "linear": tf.identity}
    function = known.get(activation) or getattr(tf.nn, activation)
    matrix = Int8MatMul(
        "w",
        bias,
        function if activation == "tanh" else activation,
        integers=integers,
        scales=scales,
        range=None if dynamic else (low, high),
    ).with_variable()
    y = tf.function(matrix)(tf.constant(x)).numpy()
    step = np.float32(high - low) * np.float32(1 / 255)
    zero = np.round(-low / step)
    rounded_x = np.clip(np.round(x / step) + zero, 0, 255) - zero
    product = (rounded_x @ integers.astype("float64")) * step * scales + bias
    # The approximate GELU is computed exactly, which is faster.
    atol = 5e-4 if activation == "gelu_approximate" else 2e-5
    np.testing.assert_allclose(y, function(product.astype("float32")), rtol=0, atol=atol)


def test_rows_of_zeros_and_of_any_number():
    matrix = Int8MatMul(
        "w", np.ones(8, "float32"), integers=np.ones((8, 8), "int8"), scales=np.ones(8, "float32")
    ).with_variable()
    serve = tf.function(matrix, input_signature=[tf.TensorSpec([None, 8])])
    for rows in (1, 3, 64, 1000, 2):
        np.testing.assert_array_equal(serve(tf.zeros([rows, 8])), np.ones((rows, 8)))
        np.testing.assert_allclose(serve(tf.ones([rows, 8])), np.full((rows, 8), 9), rtol=1e-3)


def test_matrices_join_if_their_inputs_are_rounded_alike():
    def make(**changed):
        arrays = {"integers": np.ones((4, 8), "int8"), "scales": np.ones(8, "float32")}
        return Int8MatMul("w", np.zeros(8, "float32"), **(arrays | changed))

    both = joined([make(range=(-1.0, 1.0)), make(range=(-1.0, 1.0)).times(0.5)])
    assert both.integers.shape == (4, 16)
    np.testing.assert_array_equal(both.scales, [1] * 8 + [0.5] * 8)
    assert joined([make(range=(-1.0, 1.0)), make(range=(-1.0, 2.0))]) is None
    assert joined([make(smooth=np.ones(4, "float32"))] * 2) is None
    assert joined([make(activation="relu")] * 2) is None
    half = BFloat16MatMul(
        "w", np.zeros(8, "float32"), half=np.ones((4, 8), tf.bfloat16.as_numpy_dtype)
    )
    assert joined([half, half.times(0.5)]).half.shape == (4, 16)


def test_activations_are_recognised_by_their_values():
    assert activation_of(None) == "linear"
    assert activation_of(lambda x: tf.nn.gelu(x, approximate=True)) == "gelu_approximate"
    assert activation_of(lambda x: x * 0.5 * (1 + tf.math.erf(x / 2**0.5))) == "gelu"
    assert activation_of(tf.nn.tanh) is tf.nn.tanh

    def odd(x):
        return tf.reshape(x, [2, -1])

    assert activation_of(odd) is odd


def test_a_lazy_embedding_acts_as_a_table():
    integers = np.arange(-6, 6, dtype="int8").reshape(4, 3)
    scales = np.array([1, 2, 3, 4], "float32")
    table, whole = LazyEmbeddingOp(integers, scales), integers * scales[:, None]
    ids = np.array([[0, 3], [1, 1]])
    np.testing.assert_array_equal(tf.gather(params=table, indices=ids), whole[ids])
    np.testing.assert_array_equal(tf.gather(table, [1, 2], axis=1), whole[:, [1, 2]])
    sums = tf.matmul(tf.ones([1, 3]), table, transpose_b=True)
    np.testing.assert_array_equal(sums[0], whole.sum(1))
    assert tf.convert_to_tensor(table, tf.float64).dtype == tf.float64


@pytest.mark.parametrize("specimen", [ZOO[3], ZOO[6]], ids=str)
def test_smoothquant(specimen):
    model, x = specimen.make(), padded(specimen)
    ke.calibrate(model, x, method="smoothquant")
    seen = in_memory(model, x, "int8")
    found, kinds = exported(model, x, quantize="int8")
    np.testing.assert_allclose(found, seen, rtol=0, atol=2e-3)
    assert kinds["_QuantizedMatMul"] > 0


@sampled()
@pytest.mark.parametrize(
    "specimen, group", covering([ZOO[0], ZOO[3], ZOO[6]], [2, None], strength=1)
)
def test_four_bits(specimen, group):
    model, x = specimen.make(), padded(specimen)
    ke.quantize_aware(model, weight_bits=4, group_size=group, activation_bits=None)
    seen, _ = traced(model, x)
    floats, _ = exported(model, x, quantize="int8-weights")
    np.testing.assert_allclose(floats, seen, rtol=0, atol=1e-6)
    found, kinds = exported(model, x, quantize="int8")
    # Weights with several scales per output are multiplied as floats.
    assert ("_QuantizedMatMul" in kinds) == (group is None)
    np.testing.assert_allclose(found, seen, rtol=0, atol=1e-2)


@sampled()
@pytest.mark.parametrize(
    "specimen, method", covering([ZOO[0], ZOO[3], ZOO[6]], ["adapters", "prefix"], strength=1)
)
def test_layers_with_adapters_or_prefixes_are_not_substituted(specimen, method):
    model, x = specimen.make(), padded(specimen)
    if method == "adapters":
        ke.adapters(model, size=4)
    else:
        ke.prefix_tuning(model, length=3)
    rng = np.random.default_rng(0)
    model.set_weights(
        [w + rng.normal(0, 0.3, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    seen, _ = traced(model, x)
    for quantize in FORMATS:
        found, _ = exported(model, x, quantize=quantize)
        np.testing.assert_allclose(found, seen, rtol=0, atol=5e-2)


@pytest.mark.parametrize("quantize, atol", SUBSTITUTING)
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_mask_that_keras_passes_on_is_kept(library, quantize, atol):
    keras = pytest.importorskip(library)
    ids = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 8, mask_zero=True)(ids)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.MultiHeadAttention(2, 4)(x, x))
    model = keras.Model(ids, keras.layers.Dense(2)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype(w.dtype) for w in model.get_weights()])
    ids = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]], "int32")
    if quantize == "int8":
        ke.calibrate(model, ids)
    seen, _ = traced(model, ids)
    found, _ = exported(model, ids, quantize=quantize)
    np.testing.assert_allclose(found, seen, rtol=0, atol=atol)


def test_attention_is_recognised_by_its_code():
    import keras
    import tf_keras
    from transformers.models.roberta.modeling_tf_roberta import TFRobertaSelfAttention
    from transformers.models.swin.modeling_tf_swin import TFSwinSelfAttention

    is_bert = ke.flavor.get("tf_keras").is_bert_self_attention
    assert is_bert(TFRobertaSelfAttention) and not is_bert(TFSwinSelfAttention)
    for library in (keras, tf_keras):

        class Other(library.layers.MultiHeadAttention):
            def _compute_attention(self, query, *args, **kwargs):
                return query, None

        for cls, known in ((library.layers.MultiHeadAttention, True), (Other, False)):
            layer = cls(2, 4)
            layer(np.ones((1, 3, 8), "float32"), np.ones((1, 3, 8), "float32"))
            assert (self_attention_projections(layer) is not None) == known
    gated = keras.layers.MultiHeadAttention(2, 4, use_gate=True)
    gated(np.ones((1, 3, 8), "float32"), np.ones((1, 3, 8), "float32"))
    assert self_attention_projections(gated) is None


def _same(model, x, atol=2e-2):
    """Check that every format computes the same as the model, on small and on large inputs."""
    for batch in [x, x * 100] if x.dtype.kind == "f" else [x]:
        seen, _ = traced(model, batch)
        for quantize in FORMATS:
            y, _ = exported(model, batch, quantize=quantize)
            scale = max(1.0, np.abs(seen).max())
            np.testing.assert_allclose(y, seen, rtol=0, atol=atol * scale, err_msg=quantize)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_subclassed_and_unusual_layers(library):
    keras = pytest.importorskip(library)
    layers, rng = keras.layers, np.random.default_rng(0)

    class Louder(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) * 5

    class Scaled(layers.Embedding):
        def call(self, inputs):
            return super().call(inputs) * 5

    def model_of(*stack, shape, dtype="float32"):
        model = keras.Sequential([keras.Input(shape, dtype=dtype), *stack])
        values = [rng.normal(0, 0.5, w.shape).astype(w.dtype) for w in model.get_weights()]
        model.set_weights(values)
        return model

    x = rng.normal(size=(6, 8)).astype("float32")
    _same(model_of(layers.Dense(8, activation="relu6"), shape=(8,)), x)
    _same(model_of(Louder(8), shape=(8,)), x)
    deep = rng.normal(size=(6, 4, 8)).astype("float32")
    over_time = layers.Dense(1, activation=lambda y: tf.nn.softmax(y, axis=1))
    _same(model_of(over_time, shape=(4, 8)), deep)
    einsum = layers.EinsumDense("abc,cd->abd", (4, 6), bias_axes="bd")
    _same(model_of(einsum, shape=(4, 8)), deep)
    ids = rng.integers(0, 9, (6, 4)).astype("int32")
    _same(model_of(Scaled(9, 8), shape=(4,), dtype="int32"), ids)
    _same(model_of(layers.Dense(3), shape=(4,), dtype="int32"), ids)


@sampled(2)
@pytest.mark.parametrize("quantize, atol", SUBSTITUTING)
@pytest.mark.parametrize("library, dropout", covering(["keras", "tf_keras"], [0.0, 0.1]))
def test_masks_of_numbers(library, dropout, quantize, atol):
    keras = pytest.importorskip(library)
    x, mask = keras.Input((4, 8)), keras.Input((4, 4))
    attend = keras.layers.MultiHeadAttention(2, 4, dropout=dropout)
    model = keras.Model([x, mask], attend(x, x, attention_mask=mask))
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(3, 4, 8)).astype("float32"), np.float32(0.7) * np.tri(4)[None]]
    values[1] = np.repeat(values[1], 3, 0).astype("float32")
    if quantize == "int8":
        ke.calibrate(model, [(values, 0)])
    seen = in_memory(model, values, quantize)
    found, _ = exported(model, values, quantize=quantize)
    np.testing.assert_allclose(found, seen, rtol=0, atol=atol)


def test_an_attention_layer_that_is_not_used_is_left_alone():
    import keras

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.unused, self.head = keras.layers.MultiHeadAttention(2, 4), keras.layers.Dense(3)

        def call(self, x):
            return self.head(x)

    model, x = Model(), np.ones((2, 8), "float32")
    model(x)
    _same(model, x)


@pytest.mark.parametrize("specimen", [ZOO[3], ZOO[6]], ids=str)
def test_low_rank_deltas_are_in_the_products(specimen):
    model, x = specimen.make(), padded(specimen)
    ke.lora(model, rank=2)
    ke.calibrate(model, x)
    seen = in_memory(model, x, "int8")
    found, kinds = exported(model, x, quantize="int8")
    np.testing.assert_allclose(found, seen, rtol=0, atol=2e-3)
    assert "MatMul" not in kinds and kinds["_QuantizedMatMul"] > 4


@pytest.mark.parametrize(
    "library, shape", covering(["keras", "tf_keras"], [(4, 8), (2, 4, 8)], strength=1)
)
def test_known_shapes_stay_known(library, shape):
    """A layer may unstack the output of a dense layer that it applies to a weight."""
    keras = pytest.importorskip(library)

    class Relative(keras.layers.Layer):
        def build(self, input_shape):
            self.table = self.add_weight(name="table", shape=shape, initializer="ones")
            self.dense = keras.layers.Dense(8)
            self.dense.build(shape)
            super().build(input_shape)

        def call(self, x):
            return x + sum(tf.reduce_sum(part) for part in tf.unstack(self.dense(self.table)))

    model = keras.Sequential([keras.Input((8,)), Relative()])
    _same(model, np.random.default_rng(0).normal(size=(6, 8)).astype("float32"))


@pytest.mark.parametrize(
    "library, norm_first", covering(("keras", "tf_keras"), (False, True), strength=1)
)
def test_blocks_of_plain_layers(library, norm_first):
    """Those that end in a sum are computed layer by layer in integers, and the report says so."""
    model = plain_block_models.subclassed(library, norm_first)
    features, _ = plain_block_models.data(6)
    x = plain_block_models.inputs(features)
    ke.calibrate(model, [(x, 0)])
    ke.unpad(model)
    seen, _ = traced(model, x)
    for quantize, atol in [("int8-weights", 1e-5), ("bfloat16", 6e-2), ("int8", 2e-2)]:
        compared = seen if quantize == "bfloat16" else in_memory(model, x, quantize)
        found, _ = exported(model, x, quantize=quantize)
        np.testing.assert_allclose(found, compared, rtol=0, atol=atol, err_msg=quantize)
    sample = Features(model, x)
    with (
        flat_form(model, sample) as form,
        rounded(model, "int8", sample),
        substituted_layers(model, "int8", form),
    ):
        assert len(form.blocks) == 2
        assert len(form.unchanged) == (2 if norm_first else 0)
        assert all("ends in a sum" in reason for reason in form.unchanged.values())
    np.testing.assert_array_equal(traced(model, x)[0], seen)
