"""Exports that compute Transformer blocks on rows of tokens agree with the model."""

import numpy as np
import padded_models
import pytest
import task_models
import tensorflow as tf
from covering import covering
from export_models import METHODS
from family_models import gpt2, t5
from in_process_export import in_process as in_process
from tensorflow.python.saved_model.loader_impl import parse_saved_model
from zoo import VOCABULARY, keras_of

import keras_efficient as ke
from keras_efficient.exporters import Features
from keras_efficient.exporters._flat_form import flat_form
from keras_efficient.exporters.inference_ops.encoding import Plain
from keras_efficient.exporters.inference_ops.loaded_tensor import LoadedTensor, loaded_tensors
from keras_efficient.training._flat_model import unpadded_model
from keras_efficient.versions._check_manifest import check_manifest

#: Largest differences from the model in memory, of outputs of about 1.
DIFFERENCES = {None: 1e-5, "int8-weights": 1e-5, "bfloat16": 2e-2, "int8": 2e-2}


def form_of(report):
    return check_manifest(report.directory)["recipe"]["transformer"]


def served(report, x):
    function = tf.saved_model.load(str(report.directory)).signatures["tokens"]
    return function(**{name: tf.constant(value) for name, value in x.items()})["logits"].numpy()


@pytest.mark.filterwarnings("ignore:quantize='int8' rounds the inputs")
@pytest.mark.parametrize(
    "name, method, quantize",
    covering(padded_models.MODELS, METHODS, DIFFERENCES, strength=1),
)
def test_an_export_is_the_model(name, method, quantize, tmp_path, in_process):
    """The sample has an example of one token, one without any, and one without padding."""
    model = padded_models.MODELS[name][1]()
    x, _ = padded_models.batch(name)
    METHODS[method](model, x)
    report = ke.export(model, tmp_path / "m", sample=x, quantize=quantize)
    assert report.max_abs_difference <= DIFFERENCES[quantize]
    form = form_of(report)
    assert form["blocks"] == 2 and form["rows"] == "real tokens" and not form["unchanged"]
    assert form["first_token_only"]
    # Other lengths and batch sizes, and more padding, which no output depends on.
    few, _ = padded_models.batch(name, (2, 3, 1), 5, seed=1)
    more = {key: np.pad(value, ((0, 0), (0, 4))) for key, value in few.items()}
    tolerance = 2e-2 if quantize in ("int8", "bfloat16") else 1e-5
    np.testing.assert_allclose(served(report, few), served(report, more), atol=tolerance)


def _encoder(read, mask_argument="padding_mask", mask_of=lambda mask: mask):
    """A KerasHub encoder whose tokens are read by `read(keras, hidden, mask)`."""
    import keras_hub

    keras = keras_of("keras")
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    hidden = keras.layers.Embedding(20, 8)(ids)
    for _ in range(2):
        encoder = keras_hub.layers.TransformerEncoder(16, 2)
        hidden = encoder(hidden, **{mask_argument: mask_of(mask)})
    return keras.Model({"token_ids": ids, "padding_mask": mask}, read(keras, hidden, mask))


def _batch():
    rng = np.random.default_rng(0)
    return {
        "token_ids": rng.integers(1, 20, (4, 6)).astype("int32"),
        "padding_mask": (np.arange(6)[None] < [[6], [1], [0], [4]]).astype("int32"),
    }


def _first(keras, hidden, mask):
    return keras.layers.Dense(2)(hidden[:, 0])


def _masked_mean(keras, hidden, mask):
    weights = keras.ops.cast(mask, "float32")[:, :, None]
    total = keras.ops.sum(weights, 1) + 1e-3
    return keras.layers.Dense(2)(keras.ops.sum(hidden * weights, 1) / total)


@pytest.mark.filterwarnings("ignore:quantize='int8' rounds the inputs")
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize(
    "read, rows, first",
    [
        (_first, "real tokens", True),
        (_masked_mean, "real tokens", False),
        (lambda keras, hidden, mask: keras.ops.mean(hidden, 1), "all tokens", False),
        (lambda keras, hidden, mask: hidden, "all tokens", False),
    ],
    ids=["first", "masked mean", "mean", "all"],
)
def test_what_is_read_decides_what_is_computed(read, rows, first, quantize, tmp_path, in_process):
    model = _encoder(read)
    report = ke.export(model, tmp_path / "m", sample=_batch(), quantize=quantize)
    form = form_of(report)
    assert (form["blocks"], form["rows"], form["first_token_only"]) == (2, rows, first)


@pytest.mark.filterwarnings("ignore:quantize='int8' rounds the inputs")
def test_blocks_that_are_called_for_something_else_are_quantized_layer_by_layer(
    tmp_path, in_process
):
    """Their masks differ by query, which the description does not compute."""
    model = _encoder(_first, "attention_mask", lambda mask: mask[:, :, None] * mask[:, None])
    report = ke.export(model, tmp_path / "m", sample=_batch(), quantize="int8")
    form = form_of(report)
    assert form["blocks"] == 0 and len(form["unchanged"]) == 2
    assert all("a mask for each query" in reason for reason in form["unchanged"].values())
    served = tf.saved_model.load(str(report.directory))
    functions = served.signatures["tokens"].graph.as_graph_def().library.function
    ops = [node.op for function in functions for node in function.node_def]
    # Each block has products for queries, keys and values, its context and its two dense layers.
    assert ops.count("_QuantizedMatMul") >= 2 * 4 and "MatMul" not in ops


def test_a_wrong_description_is_not_used(tmp_path, in_process, monkeypatch):
    """Keys and values are swapped: the layers' own code is exported, and the report says why."""
    import dataclasses

    from keras_efficient.architecture import recognizers

    right = recognizers.keras_hub.encoder

    def swapped(path, layer):
        block = right(path, layer)
        if block is None or isinstance(block, str):
            return block
        part = block.attention
        part = dataclasses.replace(part, key=part.value, value=part.key)
        return dataclasses.replace(block, attention=part)

    found = [swapped if r is right else r for r in recognizers.RECOGNIZERS]
    monkeypatch.setattr(recognizers, "RECOGNIZERS", found)
    model = padded_models.kerashub()
    x, _ = padded_models.batch("kerashub")
    report = ke.export(model, tmp_path / "m", sample=x)
    form = form_of(report)
    assert report.max_abs_difference <= 1e-5 and form["blocks"] == 0
    assert all("does not agree with the model" in reason for reason in form["unchanged"].values())


def test_ke_unpad_is_in_force_again_after_an_export(tmp_path, in_process):
    model = padded_models.kerashub()
    x, _ = padded_models.batch("kerashub")
    ke.unpad(model)
    present = unpadded_model(model)
    with flat_form(model, Features(model, x)) as form:
        assert unpadded_model(model) is form.model and len(form.blocks) == 2
    assert unpadded_model(model) is present and "call" in vars(model)
    ke.unpad(model).remove()
    assert "call" not in vars(model)


@pytest.mark.parametrize("name", ["kerashub", "hugging-face"])
def test_a_model_that_is_calibrated_without_padding_is_one_of_integers(name, tmp_path, in_process):
    """Queries of first tokens alone had another range, and the last block stayed in floats."""
    model = padded_models.MODELS[name][1]()
    x, _ = padded_models.batch(name)
    assert ke.unpad(model).first_token_only
    ke.calibrate(model, [x])
    assert unpadded_model(model).first_token_only
    report = ke.export(model, tmp_path / "m", sample=x, quantize="int8")
    form = form_of(report)
    assert form["blocks"] == 2 and not form["unchanged"]


def test_a_packed_model_is_exported_as_it_was(tmp_path, in_process):
    model = padded_models.kerashub()
    x, _ = padded_models.batch("kerashub")
    alone = model(x).numpy()
    ke.pack(model, 3)
    report = ke.export(model, tmp_path / "m", sample=x)
    assert report.max_abs_difference <= 1e-5
    np.testing.assert_allclose(served(report, x), alone, atol=1e-5)
    assert model(x).shape == (len(alone), 3, alone.shape[1])


@pytest.mark.filterwarnings("ignore:quantize='int8' rounds the inputs")
@pytest.mark.parametrize(
    "library, quantize", covering(task_models.LIBRARIES, ["int8", None, "bfloat16"], strength=1)
)
def test_models_in_bfloat16_are_exported(library, quantize, tmp_path, in_process):
    """Hugging Face masks scores in bfloat16 then, and blocks in integers compute in float32."""
    ke.mixed_precision("mixed_bfloat16", library=library)
    model, tokenizer = task_models.new_model("classification", library)
    ((x, _),) = task_models.batches("classification", tokenizer, batch_size=7)
    report = ke.export(model, tmp_path / "m", sample=x, quantize=quantize)
    assert form_of(report)["blocks"] == 1
    alone = task_models.logits(model, x).numpy()
    np.testing.assert_allclose(served(report, x), alone, atol=6e-2)


def test_floats_are_made_when_an_export_is_loaded(tmp_path, in_process):
    """No call converts integers, and sessions of TensorFlow 1 run the initializer, too."""
    model = padded_models.kerashub()
    x, _ = padded_models.batch("kerashub")
    report = ke.export(model, tmp_path / "m", sample=x, quantize="int8-weights")
    path = str(report.directory)
    expected = served(report, x)
    function = tf.saved_model.load(path).signatures["tokens"]
    conversions = [
        node
        for f in function.graph.as_graph_def().library.function
        for node in f.node_def
        if node.op == "Cast" and node.attr["SrcT"].type == tf.int8.as_datatype_enum
    ]
    # Rows of the three embeddings are converted where they are looked up.
    assert len(conversions) <= 3
    # No file stores the floats. One initializer makes all, because many functions load slowly.
    stored = [name for name, _ in tf.train.list_variables(f"{path}/variables/variables")]
    assert stored and not any(name.startswith("loaded/") for name in stored)
    objects = parse_saved_model(path).meta_graphs[0].object_graph_def
    assert len(objects.concrete_functions) < len(tf.saved_model.load(path).loaded)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = graph.signature_def["tokens"]
        feed = {signature.inputs[name].name: value for name, value in x.items()}
        found = session.run(signature.outputs["logits"].name, feed)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:quantize='int8' rounds the inputs")
@pytest.mark.parametrize(
    "make, quantize, reason",
    [
        (gpt2, "int8", "one layer projects queries, keys and values"),
        (t5, "bfloat16", "norms subtract no mean"),
    ],
)
def test_blocks_that_a_format_does_not_compute_as_a_whole(
    make, quantize, reason, tmp_path, in_process
):
    """The export of T5's encoder in bfloat16 failed for want of an offset in its norms."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (3, 5)).astype("int32")
    x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    form = form_of(ke.export(make(), tmp_path / "m", sample=x, quantize=quantize))
    assert len(form["unchanged"]) == 2
    assert all(reason in found for found in form["unchanged"].values())


@pytest.mark.parametrize("quantize", [None, "int8-weights"])
def test_kernels_are_joined_before_they_are_read(quantize, tmp_path, in_process):
    """Those of queries, keys and values; in the last block, of the first token, keys and values."""
    model = padded_models.kerashub()
    x, _ = padded_models.batch("kerashub")
    report = ke.export(model, tmp_path / "m", sample=x, quantize=quantize)
    function = tf.saved_model.load(str(report.directory)).signatures["tokens"]
    shapes = [
        tuple(axis.size for axis in tensor._handle_data.shape_and_type[0].shape.dim)
        for tensor in function.captured_inputs
        if tensor.dtype == tf.resource
    ]
    assert shapes.count((8, 24)) == 1
    # Keys and values, and the two kernels of the feed-forward parts.
    assert shapes.count((8, 16)) == 3
    # The query of the last block only.
    assert shapes.count((8, 2, 4)) == 1
    if quantize is None:
        # Nothing is stored twice.
        assert report.weight_bytes == 4 * model.count_params()


def test_loaded_tensors_hold_what_they_were_made_of():
    plain = Plain(np.array([1.0, 2.0], "float32"))
    plain.create("weight")
    loaded = LoadedTensor(lambda: plain.decode() * 2, [plain])
    function = tf.function(loaded.value).get_concrete_function()
    np.testing.assert_array_equal(function(), [2.0, 4.0])
    assert loaded_tensors([function]) == [loaded]
    # They are made once.
    plain.variables[0].assign([5.0, 5.0])
    np.testing.assert_array_equal(tf.convert_to_tensor(loaded), [2.0, 4.0])
