"""Adapters: where they go, that only they train, and that the model is otherwise unchanged."""

import re

import numpy as np
import pytest
from covering import contract, sampled
from fit_helpers import mirrored
from tuned import (
    SPECIMENS,
    TWO,
    added,
    assert_compiles,
    assert_exported,
    assert_mixed,
    assert_only_these_move,
    assert_replicas_agree,
    assert_saved,
    head_keys,
    outputs,
    train,
    values,
)
from zoo import FEW, VOCABULARY, full_except, keras_of

import keras_efficient as ke
from keras_efficient.parametrize import _parametrized_layer as parametrized_layer
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

names = pytest.mark.parametrize


def adapted(model):
    layers = None if attends(model) else "embed|dense"
    return ke.adapters(model, 3, layers=layers)


def attends(model):
    return any("ttention" in layer.__class__.__name__ for layer in model._flatten_layers())


@sampled()
@names("specimen", FEW, ids=repr)
def test_it_computes_what_the_model_did(specimen):
    model = specimen.make()
    x, _ = specimen.batch(4)
    before = outputs(model, x)
    adapted(model)
    np.testing.assert_array_equal(outputs(model, x), before)


@sampled()
@names("specimen", FEW, ids=repr)
def test_nothing_else_moves(specimen):
    heads = head_keys(specimen.make())
    moved, still = assert_only_these_move(specimen, adapted, heads)
    assert still == []
    assert moved == heads


@sampled()
@names("specimen", FEW, ids=repr)
def test_weights_are_saved(specimen, tmp_path):
    assert_saved(specimen, adapted, tmp_path)


@contract("export")
@sampled()
@names("specimen", TWO, ids=repr)
def test_export(specimen, tmp_path, monkeypatch):
    assert_exported(specimen, adapted, tmp_path, monkeypatch)


@contract("replicas")
@names("specimen", full_except("keras-functional", among=FEW))
def test_two_replicas_are_one(specimen):
    assert_replicas_agree(specimen, adapted)


@contract("xla")
@names("specimen", full_except("tf_keras-subclassed", among=FEW))
def test_xla(specimen):
    assert_compiles(specimen, adapted)


@contract("mixed_precision")
@sampled()
@names("specimen", full_except("keras-functional", "tf_keras-subclassed", among=FEW))
def test_mixed_precision(specimen):
    assert_mixed(specimen, adapted)


# --- where they go ---------------------------------------------------------------------------


def last_parts(report):
    """The layers' names, without the numbers that Keras gives them."""
    return [re.sub(r"_\d+$", "", path.split("/")[-2]) for path in report.weights]


@sampled()
@names(
    ("name", "both", "output"),
    [
        ("keras-functional", ["attention_output", "dense"], ["dense"]),
        ("tf_keras-functional", ["attention_output", "dense"], ["dense"]),
        (
            "kerashub-bert",
            ["attention_output", "feedforward_output_dense"],
            ["feedforward_output_dense"],
        ),
        ("hugging-face-bert", ["dense", "dense"], ["dense"]),
        ("model-garden-bert", ["attention_output", "output"], ["output"]),
    ],
)
def test_after_attention_and_feed_forward(name, both, output):
    assert last_parts(ke.adapters(SPECIMENS[name].make(), 3)) == both
    report = ke.adapters(SPECIMENS[name].make(), 3, where="output")
    assert last_parts(report) == output
    if "functional" not in name:
        # In the blocks, unlike the pooler, which has as many outputs.
        assert all("layer_" in path for path in report.weights)


def test_a_block_of_two_attentions_and_gates():
    """KerasHub's decoder block with cross-attention."""
    import keras
    import keras_hub

    ids = keras.Input((None, 8))
    other = keras.Input((None, 8))
    block = keras_hub.layers.TransformerDecoder(16, 2)
    model = keras.Model([ids, other], keras.layers.Dense(3)(block(ids, other)))
    report = ke.adapters(model, 3)
    assert len(report.weights) == 3
    assert sum("attention_output" in path for path in report.weights) == 2


def test_layers_say_where():
    model = SPECIMENS["kerashub-bert"].make()
    report = ke.adapters(model, 3, layers="query|intermediate")
    assert last_parts(report) == ["query", "feedforward_intermediate_dense"]
    kinds = {name.split(".")[-1]: value.shape for name, value in added(model).items()}
    assert kinds["down"] == (16, 3)


def test_an_adapter_after_several_axes_is_that_of_all_of_them():
    """Against the equation, after the query projection with its heads."""
    model = SPECIMENS["kerashub-bert"].make()
    layer = model.backbone.transformer_layers[0]._self_attention_layer._query_dense
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    y = np.asarray(layer(x))
    ke.adapters(model, 3, layers=[layer], activation="relu")
    store, rng = parametrized_layer.parametrized_layer(layer).store.named, np.random.default_rng(1)
    for variable in store.values():
        variable.assign(rng.normal(size=variable.shape))
    d, db, u, ub = (
        np.asarray(store[f"adapter.{name}"]) for name in ("down", "down_bias", "up", "up_bias")
    )
    flat = y.reshape(2, 5, 8)
    expected = flat + np.maximum(flat @ d + db, 0) @ u + ub
    np.testing.assert_allclose(layer(x), expected.reshape(y.shape), atol=1e-5)


@sampled()
@names("name", ["hugging-face-bert", "model-garden-bert", "keras-functional"])
def test_another_start_by_the_seed_alone(name):
    starts = []
    for seed in (0, 0, 1):
        model = SPECIMENS[name].make()
        ke.adapters(model, 3, seed=seed)
        starts.append(np.concatenate([v.ravel() for v in added(model).values()]))
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any()


# --- the report --------------------------------------------------------------------------------


def test_the_report_counts():
    model = SPECIMENS["keras-functional"].make()
    report = ke.adapters(model, 3, train=False)
    assert report.trainable == 2 * (8 * 3 + 3 + 3 * 8 + 8)
    assert str(report).startswith("adapter: 2 weights; 118 parameters train")
    assert ke.summary(model).trainable == 118
    assert "adapter 8→3" in str(ke.summary(model))


@sampled()
@names("specimen", TWO, ids=repr)
def test_remove(specimen):
    x, _ = specimen.batch(4)
    model = specimen.make()
    before, classes = outputs(model, x), [type(layer) for layer in model._flatten_layers()]
    report = ke.adapters(model, 3)
    for variable in model.trainable_weights:
        variable.assign(variable + 1.0)
    head = head_keys(model)
    assert np.abs(outputs(model, x) - before).max() > 1e-3
    report.remove()
    report.remove()
    ke.peft.unfreeze(model)
    assert [type(layer) for layer in model._flatten_layers()] == classes
    assert added(model) == {} and not parametrized_layers(model)
    assert len(model.weights) == len(specimen.make().weights)
    for key, value in values(specimen.make()).items():
        np.testing.assert_array_equal(values(model)[key], value + (key in head), err_msg=key)


def test_two_of_different_names():
    specimen = SPECIMENS["keras-functional"]
    model = specimen.make()
    ke.adapters(model, 3)
    ke.adapters(model, 2, name="second", train=False)
    assert len(added(model)) == 16


@pytest.mark.full
def test_on_lora():
    specimen = SPECIMENS["tf_keras-functional"]

    def both(model):
        ke.lora(model, rank=2, train=False, layers="value")
        return ke.adapters(model, 3)

    x, _ = specimen.batch(4)
    model = specimen.make()
    before = outputs(model, x)
    both(model)
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-6)
    _, still = assert_only_these_move(specimen, both, head_keys(specimen.make()))
    assert still == []


@pytest.mark.full
def test_a_trained_optimizer_goes_on():
    """Adapters on a model whose optimizer has slots for the base."""
    specimen = SPECIMENS["keras-functional"]
    model = train(specimen, lambda model: None)
    ke.adapters(model, 3)
    x, y = specimen.batch(12)
    before = values(model)
    model.fit(x, y, batch_size=6, verbose=0)
    moved = {path for path, value in values(model).items() if (value != before[path]).any()}
    assert moved == head_keys(model)


# --- what is refused -------------------------------------------------------------------------


@names("library", ["keras", "tf_keras"])
def test_bad_arguments(library):
    model = SPECIMENS[f"{library}-functional"].make()
    for arguments, message in [
        ({"size": 0}, "`size` must be an int of at least 1. Received: 0"),
        ({"size": 2.0}, "`size` must be an int"),
        ({"where": "input"}, "`where` must be 'both' or 'output'. Received: 'input'"),
        ({"activation": "gloo"}, "`activation` must be the name of one"),
        ({"layers": "nothing"}, "ke.adapters needs at least one weight"),
        ({"train": "nothing"}, "`train` must fit some weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            ke.adapters(model, **{"size": 2, **arguments})
        assert not parametrized_layers(model)


def test_no_attention():
    with pytest.raises(ValueError, match=r"ke\.adapters follow attention and feed-forward layers"):
        ke.adapters(SPECIMENS["keras-sequential"].make())


def test_not_built():
    import keras

    with pytest.raises(ValueError, match=r"ke\.adapters needs a built model"):
        ke.adapters(keras.Sequential([keras.layers.Dense(2)]))


def test_twice():
    model = SPECIMENS["keras-functional"].make()
    ke.adapters(model, 3)
    with pytest.raises(ValueError, match=r"ke\.adapters adds one thing of a name to a layer"):
        ke.adapters(model, 3)
    assert len(added(model)) == 8


def test_outputs_that_are_not_last():
    import keras

    x = keras.Input((4, 5))
    layer = keras.layers.EinsumDense("abc,cd->adb", output_shape=(6, 4))
    model = keras.Model(x, keras.layers.Dense(2)(layer(x)))
    with pytest.raises(ValueError, match="a layer whose outputs are its last axes"):
        ke.adapters(model, 3, layers="einsum")


@sampled()
@names("library", ["keras", "tf_keras"])
def test_no_plain_form(library, tmp_path):
    model = SPECIMENS[f"{library}-functional"].make()
    report = ke.adapters(model, 3)
    with pytest.raises(ValueError, match=r"ke\.merge folds functions of a weight"):
        ke.merge(model)
    with pytest.raises(NotImplementedError, match="a model with adapter in"):
        model.save(tmp_path / "model.keras")
    report.remove()
    ke.merge(model)
    model.save(tmp_path / "model.keras")


def test_under_another_strategy():
    model = SPECIMENS["keras-functional"].make()
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match="must run under the strategy that the model was made"),
    ):
        ke.adapters(model, 3)
    report = ke.adapters(model, 3)
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match=r"remove\(\) must run under the strategy"),
    ):
        report.remove()


@sampled()
@names("library", ["keras", "tf_keras"])
def test_an_activation_of_ones_own(library):
    import tensorflow as tf

    layers = keras_of(library).layers
    ids = layers.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8)(ids)
    model = keras_of(library).Model(ids, layers.Dense(2)(layers.Dense(8)(x)))
    assert ke.adapters(model, 3, layers="dense", activation=tf.nn.relu).method == "adapter"
