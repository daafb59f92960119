"""LiteRT files of every kind of model, in float32 and int8, run without Keras."""

import re

import numpy as np
import padded_models
import pytest
import tensorflow as tf
from covering import covering, sampled
from export_models import calling
from fit_helpers import mirrored

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters import _layer_inputs
from keras_efficient.exporters._signature import Features
from keras_efficient.exporters.litert import converter as litert, export as litert_checking
from keras_efficient.exporters.litert.converter import write_litert
from keras_efficient.exporters.litert.export import export_litert
from keras_efficient.exporters.litert.interpreter import run_litert
from keras_efficient.runtime import _model_process as process_module
from tests.zoo import CLASSES, FEW, FEW_FIRST, LENGTH, keras_of

LIBRARIES = ["keras", "tf_keras"]


@pytest.fixture
def in_process(monkeypatch):
    """Run files in this process instead of a separate one, which takes a second less each."""
    from ai_edge_litert.interpreter import Interpreter

    def run(file, *samples, threads=1):
        serve = Interpreter(model_path=str(file), num_threads=threads).get_signature_runner()
        return [serve(**{k: v.astype(DTYPES[v.dtype.kind]) for k, v in s.items()}) for s in samples]

    monkeypatch.setattr(litert_checking, "run_litert", run)


DTYPES = {"i": "int32", "f": "float32", "b": "bool"}


def wide(library, seed=0):
    """Make a classifier with enough weights for the converter to quantize them."""
    keras = keras_of(library)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(50, 32)(ids)
    x = keras.layers.Dense(64, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(48, activation="relu")(x))
    model = keras.Model(ids, keras.layers.Dense(CLASSES)(x))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
    return model


def ids(n, length=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(1, 50, (n, length)).astype("int32")


def answer(model, arrays):
    return np.asarray(flavors.of(model).call(model, arrays, training=False))


# --- every kind of model -------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("specimen", FEW_FIRST, ids=repr)
def test_zoo_at_any_batch_and_length(specimen, tmp_path, in_process):
    model = specimen.make()
    features = Features(model, specimen.batch(4)[0])
    made = export_litert(model, flavors.of(model), features, tmp_path)
    assert made.file == tmp_path / "model.tflite" and made.bytes == made.file.stat().st_size
    assert made.max_abs_difference <= 1e-6 and made.tolerance == 1e-4
    assert all(spec["shape"] == [None, None] for spec in made.signature["inputs"].values())
    assert all(spec["shape"][0] is None for spec in made.signature["outputs"].values())


@sampled(2)
@pytest.mark.parametrize(
    "name, quantize", covering(padded_models.MODELS, [None, "int8-weights", "int8"], strength=1)
)
def test_padded_models_on_rows_of_real_tokens(name, quantize, tmp_path, in_process):
    """The sample has an example of one token, one without any, and one without padding."""
    model = padded_models.MODELS[name][1]()
    x, _ = padded_models.batch(name)
    made = export_litert(
        model, flavors.of(model), Features(model, x), tmp_path, quantize=quantize, tolerance=0.05
    )
    form = made.recipe["transformer"]
    if quantize == "int8":
        assert form["blocks"] == 0 and len(form["unchanged"]) == 2
    else:
        assert form["blocks"] == 2 and form["rows"] == "real tokens" and form["first_token_only"]
    few, _ = padded_models.batch(name, (2, 3, 1), 5, seed=1)
    more = {key: np.pad(value, ((0, 0), (0, 4))) for key, value in few.items()}
    one, other = litert_checking.run_litert(made.file, few, more)
    np.testing.assert_allclose(one["logits"], other["logits"], atol=0.05 if quantize else 1e-5)


def test_blocks_that_litert_lacks_operations_for(tmp_path, monkeypatch, in_process):
    """No operation of the rows is known to be missing, so the first attempt is made to fail."""
    convert, attempts = litert._convert, []

    def once(*args):
        attempts.append(args)
        if len(attempts) == 1:
            raise VerificationError("It needs Erfc.")
        return convert(*args)

    monkeypatch.setattr(litert, "_convert", once)
    model = padded_models.MODELS["kerashub"][1]()
    features = Features(model, padded_models.batch("kerashub")[0])
    made = export_litert(model, flavors.of(model), features, tmp_path)
    form = made.recipe["transformer"]
    assert len(attempts) == 2 and made.max_abs_difference < 1e-5 and form["blocks"] == 0
    assert all("It needs Erfc" in reason for reason in form["unchanged"].values())


@sampled()
@pytest.mark.parametrize("specimen, quantize", covering(FEW, ["int8-weights", "int8"], strength=1))
def test_zoo_in_int8(specimen, quantize, tmp_path, in_process):
    model = specimen.make()
    features = Features(model, specimen.batch(8)[0])
    made = export_litert(
        model, flavors.of(model), features, tmp_path, quantize=quantize, tolerance=0.05
    )
    # The weights of the zoo are too few for the converter to quantize them in dynamic range.
    assert (made.max_abs_difference > 1e-6) == (quantize == "int8")


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_in_a_separate_process(library, tmp_path):
    model = wide(library)
    features = Features(model, ids(4))
    file = tmp_path / "model.tflite"
    signature = write_litert(model, file, features)
    assert signature == {
        "inputs": {"inputs": {"dtype": "int32", "shape": [None, None]}},
        "outputs": {"outputs": {"dtype": "float32", "shape": [None, CLASSES]}},
    }
    samples = [{"inputs": ids(*shape)} for shape in ((4, 6), (1, 1), (3, 17))]
    for sample, outputs in zip(samples, run_litert(file, *samples), strict=True):
        np.testing.assert_allclose(outputs["outputs"], answer(model, sample["inputs"]), atol=1e-5)


# --- int8 ----------------------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_int8_is_small_and_close(library, tmp_path, in_process):
    model = wide(library)
    features = Features(model, ids(32))
    made = {}
    for quantize in (None, "int8-weights", "int8"):
        folder = tmp_path / str(quantize)
        folder.mkdir()
        made[quantize] = export_litert(
            model, flavors.of(model), features, folder, quantize=quantize, tolerance=0.15
        )
    assert made[None].max_abs_difference < 1e-5
    for quantize in ("int8-weights", "int8"):
        assert made[quantize].max_abs_difference > 1e-4
        assert made[quantize].bytes < 0.55 * made[None].bytes


def details(file):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    return interpreter.get_tensor_details()


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_of_a_calibrated_model_are_its_integers(library, tmp_path, in_process):
    model = wide(library)
    ke.calibrate(model, ids(32))
    features = Features(model, ids(32))
    export_litert(model, flavors.of(model), features, tmp_path, quantize="int8")
    kernel = next(w for w in model.get_weights() if w.shape == (64, 48))
    scales = np.abs(kernel).max(0) / 127
    found = [
        d["quantization_parameters"]["scales"]
        for d in details(tmp_path / "model.tflite")
        if d["dtype"] == np.int8 and tuple(d["shape"]) == (48, 64)
    ]
    assert len(found) == 1
    np.testing.assert_allclose(found[0], scales, rtol=1e-4)


def test_int8_takes_ranges_no_wider_than_the_models_own(tmp_path, in_process, monkeypatch):
    model = wide("keras")
    ke.calibrate(model, ids(32), method="percentile", percentile=95.0)
    features, file = Features(model, ids(32)), tmp_path / "model.tflite"
    errors = []
    for clipping in (_layer_inputs._clipping, lambda low, high: _layer_inputs._identity):
        monkeypatch.setattr(_layer_inputs, "_clipping", clipping)
        write_litert(model, file, features, mode="int8")
        (outputs,) = litert_checking.run_litert(file, {"inputs": ids(32)})
        errors.append(np.abs(outputs["outputs"] - answer(model, ids(32))).mean())
    # The ranges cut off one activation in ten.
    assert errors[0] < 0.5 * errors[1]


def test_dynamic_range_rounds_inputs_itself(tmp_path, in_process):
    model, plain = wide("keras"), wide("keras")
    ke.calibrate(model, ids(32), method="percentile", percentile=95.0)
    file = tmp_path / "model.tflite"
    write_litert(model, file, Features(model, ids(32)), mode="dynamic-int8")
    (outputs,) = litert_checking.run_litert(file, {"inputs": ids(32)})
    to_plain = np.abs(outputs["outputs"] - answer(plain, ids(32))).max()
    to_model = np.abs(outputs["outputs"] - answer(model, ids(32))).max()
    assert to_plain < 0.5 * to_model


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_calibrated_model_in_floats_rounds_its_inputs(library, tmp_path, in_process):
    model, plain = wide(library), wide(library)
    ke.calibrate(model, ids(32), method="percentile", percentile=95.0)
    made = export_litert(model, flavors.of(model), Features(model, ids(32)), tmp_path)
    assert made.tolerance == 0.1
    away = np.abs(answer(model, ids(32)) - answer(plain, ids(32))).max()
    assert away > 10 * made.max_abs_difference


def test_ranges_are_measured_on_what_is_given(tmp_path, in_process):
    model = wide("keras")
    features, file = Features(model, ids(4)), tmp_path / "model.tflite"
    outputs = []
    for representative in (None, [{"inputs": np.full((4, 6), 7, "int64")}] * 2):
        write_litert(model, file, features, mode="int8", representative=representative)
        outputs += litert_checking.run_litert(file, {"inputs": ids(4)})
    expected = answer(model, ids(4))
    errors = [np.abs(o["outputs"] - expected).max() for o in outputs]
    assert errors[1] > 2 * errors[0]


# --- with transforms -----------------------------------------------------------------------------

TRANSFORMS = {
    "prune": lambda m: ke.prune(m, 0.5, begin_step=0, end_step=1),
    "quantize_aware": lambda m: ke.quantize_aware(m, calibration=ids(8)),
    "lora": lambda m: ke.lora(m, rank=2),
    "cluster": lambda m: ke.cluster(m, clusters=8),
}


@sampled()
@pytest.mark.parametrize(
    "library, transform, quantize",
    covering(LIBRARIES, TRANSFORMS, [None, "int8-weights", "int8"], strength=1),
)
def test_transforms(library, transform, quantize, tmp_path, in_process):
    model = wide(library)
    TRANSFORMS[transform](model)
    features = Features(model, ids(16))
    before = [w.copy() for w in model.get_weights()], answer(model, ids(16))
    made = export_litert(
        model, flavors.of(model), features, tmp_path, quantize=quantize, tolerance=0.1
    )
    assert made.max_abs_difference < (0.02 if quantize is None else 0.5)
    # The model is unchanged.
    for a, b in zip(before[0], model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(before[1], answer(model, ids(16)))


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_of_several_replicas(library, tmp_path, in_process):
    with mirrored().scope():
        model = wide(library)
    features = Features(model, ids(4))
    made = export_litert(model, flavors.of(model), features, tmp_path, quantize="int8-weights")
    assert 1e-4 < made.max_abs_difference < 0.5


# --- refusals ------------------------------------------------------------------------------------


def test_operations_of_tensorflow_are_refused(tmp_path):
    model = calling(lambda x: tf.roll(x, 1, 0))
    features = Features(model, np.ones((2, 4)))
    with pytest.raises(VerificationError, match=r"\(Flex\).* needs Roll\. Do that"):
        export_litert(model, flavors.of(model), features, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_converter_says_its_errors_without_the_graph(tmp_path):
    model = calling(tf.math.lgamma)
    message = r"could not write the model. It said:\n.*error: failed to convert value attribute"
    with pytest.raises(VerificationError, match=message) as raised:
        write_litert(model, tmp_path / "m.tflite", Features(model, np.ones((2, 4))))
    assert len(str(raised.value)) < 500


def test_a_failing_converter_is_quoted(tmp_path, monkeypatch):
    def convert(self):
        raise RuntimeError("first\n" * 20 + "the last line")

    converter = type(tf.lite.TFLiteConverter.from_concrete_functions([], None))
    monkeypatch.setattr(converter, "convert", convert)
    model = wide("keras")
    with pytest.raises(VerificationError, match=r"converter could not write the model.*") as raised:
        write_litert(model, tmp_path / "m.tflite", Features(model, ids(2)))
    assert str(raised.value).endswith("the last line") and str(raised.value).count("first") == 11


def test_mode(tmp_path):
    model = wide("keras")
    with pytest.raises(InputError, match=r"`mode` must be one of float32, .* Received: 'int4'"):
        write_litert(model, tmp_path / "m", Features(model, ids(2)), mode="int4")


def test_representative(tmp_path):
    model = wide("keras")
    features = Features(model, ids(2))
    with pytest.raises(InputError, match=r"is for mode='int8'.* Received: mode='float32'"):
        write_litert(model, tmp_path / "m", features, representative=[{}])
    for bad, received in (([{"ids": ids(2)}], r"\['ids'\]"), ([ids(2)], "ndarray")):
        with pytest.raises(InputError, match=rf"sample's features.* Received: {received}"):
            write_litert(model, tmp_path / "m", features, mode="int8", representative=bad)
    with pytest.raises(InputError, match=r"at least one batch. Received: none"):
        write_litert(model, tmp_path / "m", features, mode="int8", representative=[])


@pytest.mark.parametrize(
    "library, policy", covering(LIBRARIES, ["mixed_bfloat16", "mixed_float16"], strength=1)
)
def test_low_precision(library, policy, tmp_path):
    ke.mixed_precision(policy, library=library)
    model = wide(library)
    with pytest.raises(InputError, match=f"computes in float32. .* in {policy[6:]}. Make the"):
        write_litert(model, tmp_path / "m", Features(model, ids(2)))


def test_different_outputs_are_refused(tmp_path, monkeypatch):
    model = wide("keras")

    def wrong(file, *samples):
        return [{"outputs": answer(model, s["inputs"]) + 1} for s in samples]

    monkeypatch.setattr(litert_checking, "run_litert", wrong)
    with pytest.raises(VerificationError, match="differs by 1 from the model in memory"):
        export_litert(model, flavors.of(model), Features(model, ids(2)), tmp_path)


def test_a_file_for_one_length_says_so(tmp_path, monkeypatch, in_process):
    """No operation is known to need a fixed length, so the first attempt is made to fail."""
    convert, shapes = litert._convert, []

    def once(function, mode, batches):
        shapes.append(function.inputs[0].shape.as_list())
        if len(shapes) == 1:
            raise VerificationError("It could not:\nunknown dimension")
        return convert(function, mode, batches)

    monkeypatch.setattr(litert, "_convert", once)
    model = wide("keras")
    message = re.escape("sample's ({'inputs': 6}) instead of any. With any it failed: unknown dim")
    with pytest.warns(UserWarning, match=message):
        made = export_litert(model, flavors.of(model), Features(model, ids(2)), tmp_path)
    assert shapes == [[None, None], [None, 6]]
    assert made.signature["inputs"]["inputs"]["shape"] == [None, 6]


def test_a_broken_file(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"TFL3 not a model")
    with pytest.raises(VerificationError, match="must run in a process that has LiteRT but no Ker"):
        run_litert(tmp_path / "m.tflite", {"inputs": ids(1)})


def test_a_sample_without_an_input(tmp_path):
    model = wide("keras")
    write_litert(model, tmp_path / "m.tflite", Features(model, ids(2)))
    with pytest.raises(VerificationError, match=r"no array for the inputs \['inputs'\]; there are"):
        run_litert(tmp_path / "m.tflite", {"ids": ids(1)})


def test_the_runtime_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs ai-edge-litert.* 'keras_efficient\[litert\]'"):
        run_litert(tmp_path / "m.tflite", {})
