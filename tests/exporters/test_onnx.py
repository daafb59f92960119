"""ONNX files of every kind of model, in float32 and int8, run by ONNX Runtime without Keras."""

import importlib.util

import numpy as np
import onnx
import onnxruntime
import padded_models
import pytest
import tensorflow as tf
from covering import covering, sampled
from export_models import METHODS, calling

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters import Features, export_onnx, run_onnx
from keras_efficient.exporters.inference_ops.matmul import saturates
from keras_efficient.exporters.onnx import converter, export as export_module
from keras_efficient.parametrize._parametrized_layer import parametrized_layer as _view
from keras_efficient.versions._check_manifest import check_manifest
from tests.zoo import CLASSES, FEW_FIRST, ZOO, keras_of

LIBRARIES = ["keras", "tf_keras"]
QUANTIZE = [None, "int8-weights", "int8"]
#: How much further quantized files may be off without VNNI, where products saturate.
SLACK = 1.5 if saturates() else 1.0
DTYPES = {"tensor(int32)": "int32", "tensor(float)": "float32", "tensor(bool)": "bool"}


def run_here(file, *samples, threads=1):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    dtypes = {value.name: DTYPES[value.type] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return [
        dict(
            zip(
                names,
                session.run(None, {name: sample[name].astype(d) for name, d in dtypes.items()}),
                strict=True,
            )
        )
        for sample in samples
    ]


@pytest.fixture
def in_process(monkeypatch):
    """Run files in this process instead of a separate one."""
    monkeypatch.setattr(export_module, "run_onnx", run_here)


def answer(model, x):
    (output,) = ke.exporters._signature.flat_outputs(
        model, flavors.of(model).call(model, x, training=False)
    ).values()
    return output.numpy()


def operations(file):
    return [node.op_type for node in onnx.load(file).graph.node]


# --- every kind of model -------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("specimen", FEW_FIRST, ids=repr)
def test_zoo_at_any_batch_and_length(specimen, tmp_path, in_process):
    model = specimen.make()
    features = Features(model, specimen.batch(4)[0])
    made = export_onnx(model, flavors.of(model), features, tmp_path)
    assert made.file == tmp_path / "model.onnx" and made.bytes == made.file.stat().st_size
    assert made.max_abs_difference <= 1e-6 and made.tolerance == 1e-4
    assert all(spec["shape"] == [None, None] for spec in made.signature["inputs"].values())
    assert all(spec["shape"][0] is None for spec in made.signature["outputs"].values())
    assert {x.version for x in onnx.load(made.file).opset_import if x.domain == ""} == {17}


@sampled(3)
@pytest.mark.parametrize(
    "name, method, quantize",
    covering(padded_models.MODELS, METHODS, QUANTIZE, strength=1),
)
def test_padded_models_on_rows_of_real_tokens(name, method, quantize, tmp_path, in_process):
    """The sample has an example of one token, one without any, and one without padding."""
    model = padded_models.MODELS[name][1]()
    x, _ = padded_models.batch(name)
    METHODS[method](model, x)
    bound = 0.03 * SLACK
    made = export_onnx(
        model, flavors.of(model), Features(model, x), tmp_path, quantize=quantize, tolerance=bound
    )
    assert made.max_abs_difference <= (bound if quantize or method == "quantize_aware" else 1e-5)
    form = made.recipe["transformer"]
    assert form["blocks"] == 2 and form["rows"] == "real tokens" and form["first_token_only"]
    assert "NonZero" in operations(made.file)
    few, _ = padded_models.batch(name, (2, 3, 1), 5, seed=1)
    more = {key: np.pad(value, ((0, 0), (0, 4))) for key, value in few.items()}
    one, other = run_here(made.file, few, more)
    np.testing.assert_allclose(one["logits"], other["logits"], atol=0.02 if quantize else 1e-5)


def test_norms_and_gelus_have_one_node(tmp_path, in_process):
    """ONNX Runtime makes Gelu of the nodes of GELU in this order."""
    model = padded_models.MODELS["hugging-face"][1]()
    x, _ = padded_models.batch("hugging-face")
    made = export_onnx(model, flavors.of(model), Features(model, x), tmp_path)
    assert operations(made.file).count("LayerNormalization") >= 4
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(made.file, options, providers=["CPUExecutionProvider"])
    found = operations(tmp_path / "optimized.onnx")
    assert found.count("Gelu") == 2 and "Erf" not in found


def test_erfc_alone():
    x = np.linspace(-3, 3, 7, dtype="float32")

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def function(x):
        return {
            "y": tf.math.erfc(x),
            "z": tf.math.erfc(0.5 * x),
            "gelu": tf.math.erfc(-x * 0.5**0.5),
        }

    model = converter.convert(function.get_concrete_function())
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for name, value in function(tf.constant(x)).items():
        (found,) = session.run([name], {"x": x})
        np.testing.assert_allclose(found, value, atol=1e-6)


# --- int8 ----------------------------------------------------------------------------------------


def wide(library, seed=0):
    keras = keras_of(library)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(50, 32)(ids)
    x = keras.layers.Dense(64, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(48, activation="relu")(x))
    model = keras.Model(ids, keras.layers.Dense(CLASSES)(x))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
    return model


def ids(n, length=6, seed=0):
    return np.random.default_rng(seed).integers(1, 50, (n, length)).astype("int32")


def written(model, folder, quantize, **options):
    folder.mkdir()
    features = Features(model, ids(32))
    return export_onnx(
        model, flavors.of(model), features, folder, quantize=quantize, tolerance=0.5, **options
    )


def weight_bytes(file):
    constants = onnx.load(file).graph.initializer
    return sum(onnx.numpy_helper.to_array(constant).nbytes for constant in constants)


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_int8_is_small_and_close(library, tmp_path, in_process):
    model = wide(library)
    made = {quantize: written(model, tmp_path / str(quantize), quantize) for quantize in QUANTIZE}
    assert made[None].max_abs_difference < 1e-5
    kernels = {"int8-weights": "MatMulInteger", "int8": "DequantizeLinear"}
    for quantize, operation in kernels.items():
        assert 1e-4 < made[quantize].max_abs_difference < 0.15 * SLACK
        # Without the names of nodes, which most of such a small file consists of.
        assert weight_bytes(made[quantize].file) < 0.4 * weight_bytes(made[None].file)
        assert operation in operations(made[quantize].file)
    for quantize in kernels:
        narrow = written(model, tmp_path / f"{quantize}-7", quantize, reduce_range=True)
        for bits, file in ((8, made[quantize].file), (7, narrow.file)):
            weights = [
                onnx.numpy_helper.to_array(constant).astype(int)
                for constant in onnx.load(file).graph.initializer
                if constant.data_type == onnx.TensorProto.INT8 and constant.dims
            ]
            largest = max(abs(w).max() for w in weights if w.shape == (64, 48))
            assert 2 ** (bits - 1) - 2 <= largest <= 2 ** (bits - 1)


def test_int8_takes_the_models_own_ranges(tmp_path, in_process):
    """The ranges cut off one activation in ten; the sample's would not."""
    model = wide("keras")
    ke.calibrate(model, ids(32), method="percentile", percentile=95.0)
    expected = answer(model, ids(32))
    plain = answer(wide("keras"), ids(32))
    made = written(model, tmp_path / "own", "int8")
    (found,) = run_here(made.file, {"inputs": ids(32)})
    away = np.abs(plain - expected).mean()
    assert np.abs(found["outputs"] - expected).mean() < 0.3 * SLACK * away
    # The input of the last layer is not reshaped. Its range is that of the file, on any sample.
    low, high, _ = _view(model.layers[-1]).call_wrappers[0].range.numpy()
    scales = [
        float(onnx.numpy_helper.to_array(constant))
        for constant in onnx.load(made.file).graph.initializer
        if constant.name.endswith("_scale") and not constant.dims
    ]
    assert np.isclose(scales, (high - low) / 255, rtol=1e-5).any()
    # Dynamic quantization takes the range of each call.
    made = written(model, tmp_path / "each", "int8-weights")
    (found,) = run_here(made.file, {"inputs": ids(32)})
    assert np.abs(found["outputs"] - plain).mean() < 0.3 * SLACK * away


# --- versions ------------------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("specimen", [ZOO[3], ZOO[4]], ids=repr)
def test_a_version(specimen, tmp_path):
    model, (x, y) = specimen.make(), specimen.batch(4)
    version = ke.exporters.check_export(model, tmp_path / "m", sample=x, format="onnx")
    report = ke.export(
        model,
        tmp_path / "m",
        sample=x,
        format="onnx",
        quantize="int8",
        target="avx2",
        evaluate=ke.exporters.Evaluation((x, y), max_drop=1),
    )
    assert report.directory == version and report.evaluation["examples"] == 4
    recipe = check_manifest(report.directory)["recipe"]
    assert recipe["format"] == "onnx" and recipe["opset"] == 17 and recipe["target"] == "avx2"
    timed = ke.bench.bench(report.directory, batches=[1], lengths=[4], seconds=0.1, vocabulary=5)
    assert [target["kind"] for target in timed.targets.values()] == ["onnx"]
    with pytest.raises(InputError):
        ke.serving.predict(report.directory, ["A text."])


# --- refusals ------------------------------------------------------------------------------------


def test_operations_that_onnx_lacks_are_refused(tmp_path):
    model = calling(tf.math.lgamma)
    features = Features(model, np.ones((2, 4)))
    with pytest.raises(VerificationError, match=r"opset 17. The model needs Lgamma of TensorFlow"):
        export_onnx(model, flavors.of(model), features, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_converter_is_quoted(tmp_path, monkeypatch):
    import tf2onnx

    def convert(*args, **kwargs):
        raise RuntimeError("first\n" * 20 + "the last line")

    monkeypatch.setattr(tf2onnx.convert, "from_function", convert)
    model = calling(tf.identity)
    with pytest.raises(VerificationError, match=r"tf2onnx could not write the model") as raised:
        export_onnx(model, flavors.of(model), Features(model, np.ones((2, 4))), tmp_path)
    assert str(raised.value).endswith("the last line") and str(raised.value).count("first") == 11


def test_without_the_extra_nothing_is_begun(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find_spec(name)
    )
    model, x = ZOO[0].make(), ZOO[0].batch(2)[0]
    for function in (ke.export, ke.exporters.check_export):
        with pytest.raises(InputError, match=r"without tf2onnx. .*'keras_efficient\[onnx\]'"):
            function(model, tmp_path / "m", sample=x, format="onnx")
    assert not (tmp_path / "m").exists()


def test_low_precision(tmp_path):
    ke.mixed_precision("mixed_bfloat16", library="keras")
    model = wide("keras")
    with pytest.raises(InputError, match="An ONNX file needs a model that computes in float32"):
        export_onnx(model, flavors.of(model), Features(model, ids(2)), tmp_path)


def test_a_broken_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(VerificationError, match="process that has ONNX Runtime but no Keras"):
        run_onnx(tmp_path / "m.onnx", {"inputs": ids(1)})
