"""`ke.unpad` changes neither losses nor gradients, and says where it does nothing."""

import dataclasses
import functools
import inspect
import re
import types
import warnings
from typing import Any

import numpy as np
import padded_models
import plain_block_models as plain_blocks
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import assert_same, batches, compiled, mirrored
from unpad_methods import METHODS, SAME, surroundings
from zoo import CLASSES, VOCABULARY, ZOO, fixed, hf_config, keras_of, kerashub_backbone

import keras_efficient as ke
from keras_efficient.architecture import recognizers
from keras_efficient.architecture._token_rows import TokenRows
from keras_efficient.training import _train_step_hook as train_step_hook

every_model = pytest.mark.parametrize("name", padded_models.MODELS)
libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def run(name, method, unpad, *, before=True):
    """Train for five updates; return the model, the history and the report of `ke.unpad`."""
    library, make, _ = padded_models.MODELS[name]
    report = None
    with surroundings(library, method):
        model = make()
        if unpad and before:
            report = ke.unpad(model)
        METHODS[method](model)
        if unpad and not before:
            report = ke.unpad(model)
        settings = {"metrics": None, "weighted_metrics": None}
        compiled(library, model, jit_compile=method == "jit_compile", **settings)
    pairs = [padded_models.batch(name, seed=seed) for seed in range(4)]
    # No padding, and only single tokens.
    pairs.append(padded_models.batch(name, lengths=[9] * 8))
    pairs.append(padded_models.batch(name, lengths=[1] * 8))
    x = {key: np.concatenate([x[key] for x, _ in pairs]) for key in pairs[0][0]}
    y = np.concatenate([y for _, y in pairs])
    data = batches(x, y, batch_size=8)
    history = model.fit(data, shuffle=False, verbose=0).history
    if method == "plain":
        history["evaluated"] = model.evaluate(data, verbose=0)
    return model, history, report


#: Methods that read weights as others do, and XLA, which takes long and computes the padding.
LONG = ("lora", "adapters", "quantize_aware", "remat", "one replica", "bfloat16", "jit_compile")


@functools.cache
def padded(name, method):
    return run(name, method, False)


@pytest.mark.parametrize(
    "name, method, before",
    covering(
        padded_models.MODELS,
        [pytest.param(m, marks=[pytest.mark.full] * (m in LONG), id=m) for m in METHODS],
        [True, False],
        strength=1,
    ),
)
def test_trains_like_the_padded_model(name, method, before):
    expected, expected_history, _ = padded(name, "plain" if method in SAME else method)
    model, history, report = run(name, method, True, before=before)
    tolerance = 3e-2 if method == "bfloat16" else 3e-6
    assert_same(model, expected, atol=tolerance)
    for key in history:
        np.testing.assert_allclose(history[key], expected_history[key], atol=max(tolerance, 1e-5))
    assert len(report.blocks) == 2 and report.first_token_only and report.masked
    assert not report.unchanged


@every_model
@sampled(2)
def test_dropout_drops_as_many(name):
    """The masks differ from those of the padded model, so their mean effect is compared."""
    _, make, _ = padded_models.MODELS[name]
    model, plain = make(dropout=0.3), make(dropout=0.3)
    ke.unpad(model)
    x, _ = padded_models.batch(name, lengths=[9] * 200)
    for key in x:
        x[key] = np.repeat(x[key][:1], 200, axis=0)

    def spread(model):
        result = model(x, training=True)
        return np.std(getattr(result, "logits", result), axis=0)

    np.testing.assert_allclose(spread(model), spread(plain), rtol=0.35)
    assert np.ptp(np.asarray(getattr(model(x), "logits", model(x))), axis=0).max() < 1e-5


@every_model
@sampled(1)
def test_left_padding_and_gaps(name):
    _, make, _ = padded_models.MODELS[name]
    model, plain = make(), make()
    ke.unpad(model)
    x, _ = padded_models.batch(name)
    mask = next(key for key in x if "mask" in key)
    x[mask] = np.random.default_rng(1).integers(0, 2, x[mask].shape).astype("int32")
    for output, expected in zip(*(tf.nest.flatten(m(x)) for m in (model, plain)), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_remove_restores_the_model():
    model = padded_models.kerashub()
    report = ke.unpad(model)
    assert "call" in vars(model)
    report.remove()
    assert "call" not in vars(model)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())
    report.remove()


def test_a_second_call_replaces_the_first_and_remat_survives():
    model = padded_models.kerashub()
    ke.remat(model)
    first = ke.unpad(model)
    second = ke.unpad(model)
    first.remove()
    assert second.blocks == first.blocks and "call" in vars(model)
    second.remove()
    blocks = [layer for layer in model._flatten_layers() if "transformer_layer" in layer.name]
    assert all("call" in vars(block) for block in blocks)
    ke.remat(model, False)
    assert all("call" not in vars(block) for block in blocks)


def test_another_model_of_the_same_blocks_computes_all_tokens():
    model = padded_models.kerashub()
    x, _ = padded_models.batch("kerashub")
    expected = model.backbone(x)["sequence_output"]
    assert ke.unpad(model).first_token_only
    np.testing.assert_array_equal(model.backbone(x)["sequence_output"], expected)


def test_an_export_and_a_file_are_those_of_the_padded_model(tmp_path):
    model = padded_models.kerashub()
    x, _ = padded_models.batch("kerashub")
    expected = model(x)
    ke.unpad(model)
    model.save(tmp_path / "model.keras")
    loaded = keras_of("keras").models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), expected, atol=1e-5)


# --- what is not computed without padding --------------------------------------------------------


def test_swapped_keys_and_values_are_found(monkeypatch):
    """A recogniser that is wrong changes nothing but the report."""

    def wrong(path, layer):
        block = recognizers.keras_hub.encoder(path, layer)
        if not isinstance(block, ke.architecture.Block) or not path.endswith("layer_0"):
            return block
        attention = block.attention
        swapped = dataclasses.replace(attention, key=attention.value, value=attention.key)
        return dataclasses.replace(block, attention=swapped)

    monkeypatch.setattr(recognizers, "RECOGNIZERS", [wrong])
    model, plain = padded_models.kerashub(), padded_models.kerashub()
    report = ke.unpad(model)
    (path,) = report.unchanged
    assert path.endswith("layer_0") and "does not agree" in report.unchanged[path]
    assert len(report.blocks) == 1
    x, _ = padded_models.batch("kerashub")
    np.testing.assert_allclose(model(x), plain(x), atol=1e-5)


def _kerashub_with_unknown_block():
    import keras_hub

    keras = keras_of("keras")

    class OddEncoder(keras_hub.layers.TransformerEncoder):
        def call(self, inputs, padding_mask=None, **kwargs):
            first = inputs[:, :1]
            return inputs + self._self_attention_layer(query=inputs, value=first, key=first)

    ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    x = keras.layers.Embedding(VOCABULARY, 8)(ids)
    for number, cls in enumerate(
        [keras_hub.layers.TransformerEncoder, OddEncoder, keras_hub.layers.TransformerEncoder]
    ):
        x = cls(16, 2, name=f"block_{number}")(x, padding_mask=mask)
    outputs = keras.layers.Dense(CLASSES)(x[:, 0])
    return fixed(keras.Model({"token_ids": ids, "padding_mask": mask}, outputs))


def _hugging_face_with_unknown_block():
    import transformers
    from transformers.models.bert.modeling_tf_bert import TFBertLayer

    class OddLayer(TFBertLayer):
        def call(self, hidden_states, *args, **kwargs):
            outputs = TFBertLayer.call(self, hidden_states, *args, **kwargs)
            return (outputs[0] + 0.5 * hidden_states, *outputs[1:])

    model = transformers.TFBertForSequenceClassification(hf_config(3))
    model.bert.encoder.layer[1] = OddLayer(model.config, name="layer_._1")
    model(model.dummy_inputs)
    return fixed(model)


WITH_UNKNOWN_BLOCK = {
    "kerashub": _kerashub_with_unknown_block,
    "hugging-face": _hugging_face_with_unknown_block,
}


@pytest.mark.parametrize("name", WITH_UNKNOWN_BLOCK)
def test_an_unknown_block_in_the_middle_computes_as_before(name):
    model, plain = (WITH_UNKNOWN_BLOCK[name]() for _ in range(2))
    report = ke.unpad(model)
    (path,) = report.unchanged
    assert len(report.blocks) == 2 and report.first_token_only
    assert sorted([*report.blocks, path])[1] == path and "Odd" in str(report)
    x, y = padded_models.batch(name)
    x = {key: x[key] for key in x if key != "segment_ids"}
    found, expected = (_outputs_and_gradients(each, x, y) for each in (model, plain))
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-5)


def _mean_over_positions(masked=False):
    import keras_hub

    keras = keras_of("keras")
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    x = keras.layers.Embedding(VOCABULARY, 8)(ids)
    x = keras_hub.layers.TransformerEncoder(16, 2)(x, padding_mask=mask)
    pool = keras.layers.GlobalAveragePooling1D()
    x = pool(x, mask=keras.ops.cast(mask, "bool")) if masked else pool(x)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, keras.layers.Dense(3)(x))


def test_a_model_that_reads_padding_is_refused():
    model = _mean_over_positions()
    with pytest.raises(ValueError, match=r"must not change what a model computes.*use the mask"):
        ke.unpad(model)
    assert "call" not in vars(model)


def test_a_mean_over_real_positions_reads_them_all():
    report = ke.unpad(_mean_over_positions(masked=True))
    assert len(report.blocks) == 1 and not report.first_token_only


def test_outputs_for_each_token_need_a_loss_that_ignores_padding():
    import keras_hub

    backbone = padded_models.kerashub().backbone
    with pytest.raises(ValueError, match="ignore_padding_outputs=True"):
        ke.unpad(backbone)
    report = ke.unpad(backbone, ignore_padding_outputs=True)
    assert len(report.blocks) == 2 and not report.first_token_only
    assert isinstance(backbone, keras_hub.models.BertBackbone)


def test_without_a_mask_there_is_nothing_to_remove():
    import keras_hub

    keras = keras_of("keras")
    ids = keras.Input((None,), dtype="int32")
    x = keras_hub.layers.TransformerEncoder(16, 2)(keras.layers.Embedding(VOCABULARY, 8)(ids))
    model = keras.Model(ids, keras.layers.Dense(3)(x[:, 0]))
    report = ke.unpad(model)
    assert not report.masked and "receives no mask" in str(report) and report.first_token_only


@pytest.mark.parametrize("specimen", [s for s in ZOO if "bert" not in s.name], ids=str)
@sampled(2)
def test_models_without_known_blocks_are_refused(specimen):
    with pytest.raises(ValueError, match="Transformer blocks of a known kind"):
        ke.unpad(specimen.make())


def test_inputs_that_cannot_be_made_up_need_a_sample():
    import keras_hub

    keras = keras_of("keras")
    x = keras.Input((None, 8))
    y = keras_hub.layers.TransformerEncoder(16, 2)(x)
    model = keras.Model(x, keras.layers.Dense(3)(y[:, 0]))
    with pytest.raises(ValueError, match=r"Pass a batch of features as `sample`"):
        ke.unpad(model)
    sample = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    assert ke.unpad(model, sample=sample).first_token_only


@libraries
@sampled(1)
def test_two_encoders_with_masks_of_their_own(library):
    layers = keras_of(library).layers
    Block, length = plain_blocks.block_class(library), plain_blocks.LENGTH
    inputs, states = {}, []
    for side in ("left", "right"):
        names = [f"{side}_ids", f"{side}_mask"]
        ids, mask = (layers.Input((length,), dtype="int32", name=name) for name in names)
        inputs |= dict(zip(names, (ids, mask), strict=True))
        x = layers.Embedding(VOCABULARY, plain_blocks.WIDTH)(ids)
        x = Block(name=side)(x, attention_mask=layers.Reshape((1, length))(mask))
        states.append(x[:, 0])
    model = fixed(keras_of(library).Model(inputs, layers.Dense(CLASSES)(layers.add(states))))
    left, y = plain_blocks.data(8)
    right = {key: value[::-1] for key, value in left.items()}
    x = {
        f"{side}_{new}": features[old]
        for side, features in (("left", left), ("right", right))
        for new, old in (("ids", "token_ids"), ("mask", "padding_mask"))
    }
    expected = _outputs_and_gradients(model, x, y)
    report = ke.unpad(model)
    assert report.blocks == ("left", "right") and report.masked
    for value, other in zip(_outputs_and_gradients(model, x, y), expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-5)


@every_model
@sampled(1)
def test_texts_longer_than_the_position_table_are_the_model_s_own_error(name):
    model = padded_models.MODELS[name][1]()
    x, _ = padded_models.batch(name, lengths=[20, 3], length=20)
    with pytest.raises(Exception) as expected:
        model(x)
    report = ke.unpad(model)
    with pytest.raises(expected.type):
        model(x)
    report.remove()
    with pytest.raises(expected.type):
        ke.unpad(model, sample=x)
    assert "call" not in vars(model)


def test_examples_are_no_longer_than_the_position_table():
    import keras_hub

    backbone = keras_hub.models.BertBackbone(VOCABULARY, 2, 2, 8, 16, max_sequence_length=4)
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES)
    assert len(ke.unpad(model).blocks) == 2


def test_a_sample_without_padding_is_refused():
    model = padded_models.kerashub()
    sample, _ = padded_models.batch("kerashub", lengths=[9] * 3)
    with pytest.raises(ValueError, match="`sample` must have padding"):
        ke.unpad(model, sample=sample)
    assert "call" not in vars(model)


@libraries
def test_an_unbuilt_model_is_refused(library):
    keras = keras_of(library)
    with pytest.raises(ValueError, match="needs a built model"):
        ke.unpad(keras.Sequential([keras.layers.Dense(3)]))


@pytest.mark.full
def test_xla_is_told_of():
    """Keras 3 may choose XLA by itself, and then nothing would be gained without a word."""
    model = padded_models.kerashub()
    ke.unpad(model)
    compiled("keras", model, jit_compile=True)
    x, y = padded_models.batch("kerashub")
    with pytest.warns(UserWarning, match=r"computes padding in spite of ke\.unpad"):
        model.fit(batches(x, y, batch_size=8), verbose=0)


def _outputs_and_gradients(model, x, y, training=False):
    with tf.GradientTape() as tape:
        result = model(x, training=training)
        outputs = getattr(result, "logits", result)
        loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(y, outputs, True))
    variables = [ke.flavor.of(model).value(v) for v in model.trainable_variables]
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    return [outputs, *map(tf.convert_to_tensor, gradients)]


@pytest.mark.parametrize("rows", [43, 50, 12, 80])
def test_a_number_of_rows_for_xla(rows):
    """Rows that stand for nothing get no gradient, and a batch with more tokens is padded.

    So is one that has no more tokens with its padding.

    The model runs eagerly, which takes less time than XLA.
    """
    model = padded_models.hugging_face()
    x, y = padded_models.batch("hugging-face")
    expected = _outputs_and_gradients(model, x, y)
    report = ke.unpad(model, rows=rows)
    compiled("tf_keras", model, jit_compile=True)
    used = []
    holder = report._holder
    for block in holder.blocks:
        plain = block.compute_compiled
        block.compute_compiled = lambda *args, plain=plain: used.append(1) or plain(*args)
    found = _outputs_and_gradients(model, x, y)
    assert len(used) == 2
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-6)


@pytest.mark.parametrize(
    "name, method",
    [
        ("kerashub", "remat"),
        pytest.param("kerashub", "lora", marks=pytest.mark.full),
        ("hugging-face", "quantize_aware"),
    ],
)
def test_xla_lowers_methods_with_a_number_of_rows(name, method):
    """Outputs and gradients have shapes that do not depend on data, and are those of the model.

    The numbers are computed eagerly. XLA translates the same code, but does not compile it, which
    takes long; `test_xla_computes_a_number_of_rows` trains with it.
    """
    library, make, _ = padded_models.MODELS[name]
    model = make()
    METHODS[method](model)
    batch = tf.nest.map_structure(tf.constant, padded_models.batch(name))
    expected = _outputs_and_gradients(model, *batch, training=True)
    holder = ke.unpad(model, rows=50)._holder
    compiled(library, model, jit_compile=True)
    found = _outputs_and_gradients(model, *batch, training=True)
    assert len(holder.blocks) == 2 and all(map(holder.calls, holder.blocks))
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-6)

    @tf.function(jit_compile=True, autograph=False)
    def compute(x, y):
        return _outputs_and_gradients(model, x, y, training=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="XLA compiles fixed shapes")
        program = compute.experimental_get_compiler_ir(*batch)(stage="hlo")
    assert "conditional" in program
    # A shape that depends on data has a bound.
    assert not re.findall(r".*\[<=.*", program)


def test_rows_of_a_budget_are_the_real_tokens():
    added = tf.constant([[0.0, 0, -9, -9], [-9, -9, -9, -9], [-9, 0, -9, 0]])
    free, fixed = TokenRows(added), TokenRows(added, budget=10)
    assert fixed.index.shape == (10,) and bool(fixed.fits)
    np.testing.assert_array_equal(fixed.index[:9], free.index)
    np.testing.assert_array_equal(fixed.present[:, 0], [1] * 9 + [0])
    padded = tf.random.normal([3, 4, 2])
    np.testing.assert_array_equal(fixed.put(fixed.take(padded)), free.put(free.take(padded)))
    assert not bool(TokenRows(added, budget=8).fits)


def _trained_on_one_shape(name, method, jit_compile, rows=None):
    """Train for five updates on batches of one static shape.

    Returns:
        The model, its losses, and how often its call was traced.
    """
    library, make, _ = padded_models.MODELS[name]
    scope = mirrored() if method == "replicas" else tf.distribute.get_strategy()
    with scope.scope():
        model, calls = make(), []
        METHODS["accumulate" if method == "replicas" else method](model)
        plain = model.call

        @tf.autograph.experimental.do_not_convert
        @functools.wraps(plain.__func__)
        def counted(model, *args, **kwargs):
            calls.append(tf.executing_eagerly())
            return plain(*args, **kwargs)

        object.__setattr__(model, "call", types.MethodType(counted, model))
        if rows is not None:
            ke.unpad(model, rows=rows)
        settings = {"metrics": None, "weighted_metrics": None}
        compiled(library, model, jit_compile=jit_compile, **settings)
    pairs = [padded_models.batch(name, seed=seed) for seed in range(5)]
    x = {key: np.concatenate([x[key] for x, _ in pairs]) for key in pairs[0][0]}
    y = np.concatenate([y for _, y in pairs])
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="XLA compiles fixed shapes")
        history = model.fit(data, shuffle=False, verbose=0).history
    return model, history["loss"], calls.count(False)


#: Enough for all batches, or too few for some; for a call of the model, which is a microbatch.
ROWS = {"accumulate": 13, "replicas": 10, "plain": 10, "remat": 43}
WITH_XLA = ("plain", "accumulate", "lora", "prune", "quantize_aware", "remat", "replicas")


@pytest.mark.full
@pytest.mark.parametrize("name", ["kerashub", "hugging-face"])
@pytest.mark.parametrize("method", WITH_XLA)
def test_xla_computes_a_number_of_rows(name, method):
    """Shapes are known in every trace, and there are no more traces than without `ke.unpad`."""
    expected, expected_losses, traces = _trained_on_one_shape(name, method, jit_compile=False)
    rows = ROWS.get(method, 60)
    model, losses, found = _trained_on_one_shape(name, method, jit_compile=True, rows=rows)
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5)
    assert_same(model, expected, atol=3e-6)
    assert 0 < found <= traces


@pytest.mark.parametrize("name", [pytest.param("kerashub", marks=pytest.mark.full), "hugging-face"])
def test_microbatches_of_a_static_batch_have_static_shapes(name):
    """Also a smaller last one. The step is traced as for XLA, which would compile for long."""
    library, make, _ = padded_models.MODELS[name]
    model, sizes = make(), []
    ke.accumulate(model, 3)
    report = ke.unpad(model, rows=20)
    compiled(library, model, jit_compile=True)
    for block in report._holder.blocks:
        plain = block.compute_compiled
        block.compute_compiled = lambda current, inputs, *args, plain=plain: (
            sizes.append(inputs.hidden.shape[0]) or plain(current, inputs, *args)
        )
    specs = tf.nest.map_structure(tf.type_spec_from_value, padded_models.batch(name))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="XLA compiles fixed shapes")
        hook = train_step_hook.of(model)
        # An evaluation of the whole batch creates the variables.
        hook.training_step.prepare(specs)
        tf.function(hook, autograph=False).get_concrete_function(specs)
    assert sizes == [8, 8, 3, 3, 2, 2]


@pytest.mark.full
def test_a_number_of_rows_needs_fixed_shapes():
    model = padded_models.kerashub()
    ke.unpad(model, rows=50)
    compiled("keras", model, jit_compile=True)
    x, y = padded_models.batch("kerashub")
    with pytest.warns(UserWarning, match="pass batches of one shape"):
        model.fit(batches(x, y, batch_size=8), verbose=0)


@pytest.mark.parametrize("rows", [0, True, 2.5, "all"])
def test_a_number_of_rows_must_be_an_int_above_0(rows):
    with pytest.raises(ValueError, match="`rows` must be the number of tokens"):
        ke.unpad(padded_models.kerashub(), rows=rows)


def test_the_signature_of_the_model_remains():
    """Hugging Face's `train_step` looks in it for labels, and `save` for inputs."""
    model = padded_models.distilbert()
    before = inspect.signature(model.call)
    ke.unpad(model)
    assert inspect.signature(model.call) == before


@pytest.mark.full
@pytest.mark.parametrize("name", ["hugging-face", "garden"])
def test_saved_model_of_tf_keras(name, tmp_path):
    model = padded_models.MODELS[name][1]()
    x, _ = padded_models.batch(name)
    (expected,) = tf.nest.flatten(model(x))
    ke.unpad(model)
    model.save(tmp_path / "saved", save_format="tf")
    loaded: Any = tf.saved_model.load(str(tmp_path / "saved"))
    served = loaded.signatures["serving_default"](**{k: tf.constant(v) for k, v in x.items()})
    np.testing.assert_allclose(tf.nest.flatten(served)[0], expected, atol=1e-5)


# --- other families ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Albert", "DistilBert", "GPT2", "Roberta"])
@sampled(2)
def test_backbones_of_kerashub(family):
    """The comparison is the test: outputs and gradients of real tokens agree to 1e-5."""
    report = ke.unpad(kerashub_backbone(family, 2), ignore_padding_outputs=True)
    assert report.masked and not report.unchanged and report.blocks


@pytest.mark.parametrize("family", ["Albert", "Electra", "Roberta"])
@sampled(1)
def test_classifiers_of_hugging_face(family):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        embedding_size=8,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    model = getattr(transformers, f"TF{family}ForSequenceClassification")(config)
    model(model.dummy_inputs)
    report = ke.unpad(model)
    assert report.masked and not report.unchanged
    # ALBERT computes one block several times, so the last time is not known.
    assert report.first_token_only == (family != "Albert")


def test_a_model_without_trainable_weights_is_unpadded_for_predictions():
    model = padded_models.kerashub()
    model.trainable = False
    x, _ = padded_models.batch("kerashub")
    expected = model(x)
    assert len(ke.unpad(model).blocks) == 2
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
