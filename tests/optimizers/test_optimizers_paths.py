"""Exclusions, layer-wise rates and groups, which are selected by the variables' paths."""

import re

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from formulas import EQUATIONS
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.optimizers._param_groups import PathRules, VariableRule

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
BERTS = ["kerashub-bert", "hugging-face-bert", "model-garden-bert"]
berts = pytest.mark.parametrize("name", BERTS)
ParamGroup = ke.optimizers.ParamGroup


def moves(optimizer, model, gradient):
    """Return how much one step with constant gradients changes each weight, from all ones."""
    flavor = ke.flavor.of(model)
    values = list(map(flavor.value, model.trainable_variables))
    for value in values:
        value.assign(tf.ones_like(value))
    gradients = [tf.fill(value.shape, gradient) for value in values]
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return [float(np.abs(value.numpy() - 1).max()) for value in values]


def made(name):
    return next(specimen for specimen in ZOO if specimen.name == name).make()


# --- exclusions ----------------------------------------------------------------------------------


@libraries
def test_nothing_is_excluded_by_default(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    optimizer = ke.optimizers.AdamW(0.1, weight_decay=0.1, library=library)
    assert min(moves(optimizer, model, 0.0)) > 1e-4


@sampled()
@pytest.mark.parametrize(("kind", "name"), covering(EQUATIONS, BERTS, strength=1))
def test_no_decay_is_biases_and_normalisation(kind, name):
    model = made(name)
    flavor = ke.flavor.of(model)
    normalisation = set()
    for layer in model._flatten_layers():
        if isinstance(layer, flavor.keras.layers.LayerNormalization):
            normalisation |= {id(flavor.value(variable)) for variable in layer.weights}
    assert normalisation
    optimizer = getattr(ke.optimizers, kind)(
        0.1, weight_decay=0.1, exclude=ke.optimizers.NO_DECAY, library=model
    )
    pairs = zip(model.trainable_variables, moves(optimizer, model, 0.0), strict=True)
    for variable, move in pairs:
        path = flavor.path(variable)
        decays = (
            id(flavor.value(variable)) not in normalisation and "bias" not in path.split("/")[-1]
        )
        assert (move > 1e-4) is decays, (kind, path)
        if decays:
            assert re.search("kernel|embedding", path), path


@sampled(2)
@pytest.mark.parametrize("specimen", ZOO, ids=repr)
def test_no_decay_leaves_the_matrices_of_the_zoo(specimen):
    model = specimen.make()
    flavor = ke.flavor.of(model)
    paths = list(map(flavor.path, model.trainable_variables))
    rules = PathRules.of(ke.optimizers.NO_DECAY, (), None).assign(paths)
    for path, rule in zip(paths, rules, strict=True):
        assert rule.excluded is not bool(re.search("(kernel|embeddings|weight)$", path)), path


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("transformer_layer_0/self_attention_layernorm/scale", True),
        ("tft5/encoder/block_._0/layer_._0/layer_norm/weight", True),
        ("tf_bert/bert/embeddings/word_embeddings/weight", False),
        ("dense/kernel", False),
    ],
)
def test_no_decay_knows_norms_without_an_offset(path, excluded):
    (rule,) = PathRules.of(ke.optimizers.NO_DECAY, (), None).assign([path])
    assert rule.excluded is excluded


@libraries
def test_the_librarys_own_exclusions_hold_too(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    optimizer = ke.optimizers.AdamW(0.1, weight_decay=0.1, library=library)
    flavor = ke.flavor.get(library)
    optimizer.exclude_from_weight_decay(var_list=[flavor.value(model.trainable_variables[1])])
    kernel, bias = moves(optimizer, model, 0.0)
    assert kernel > 1e-4
    assert bias == 0


@libraries
def test_one_pattern_as_a_string_and_the_librarys_own_schedule(library):
    rate = keras_of(library).optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = ke.optimizers.AdamW(rate, exclude="bias$", library=library)
    assert optimizer.get_config()["exclude"] == ["bias$"]
    assert ke.flavor.of(optimizer).name == library


# --- layer-wise rates ----------------------------------------------------------------------------

NAMINGS = {
    "kerashub": (
        "token_embedding/embeddings",
        "embeddings_layer_norm/gamma",
        "transformer_layer_{}/self_attention_layer/query/kernel",
        "pooled_dense/kernel",
    ),
    "kerashub-gpt": (
        "token_embedding/embeddings",
        "position_embedding/embeddings",
        "transformer_layer_{}/feedforward_output_dense/bias",
        "token_embedding/reverse_embeddings",
    ),
    "hugging-face": (
        "tf_bert_model/bert/embeddings/word_embeddings/weight",
        "tf_bert_model/bert/embeddings/LayerNorm/gamma",
        "tf_bert_model/bert/encoder/layer_._{}/attention/self/query/kernel",
        "tf_bert_model/bert/pooler/dense/kernel",
    ),
    "hugging-face-gpt": (
        "tfgpt2_model/transformer/wte/weight",
        "tfgpt2_model/transformer/wpe/embeddings",
        "tfgpt2_model/transformer/h_._{}/attn/c_attn/weight",
        "tfgpt2_model/transformer/ln_f/gamma",
    ),
    "hugging-face-t5": (
        "tft5/shared/embeddings",
        "tft5/shared/embeddings",
        "tft5/encoder/block_._{}/layer_._1/DenseReluDense/wi/kernel",
        "tft5/encoder/final_layer_norm/weight",
    ),
    "model-garden": (
        "word_embeddings/embeddings",
        "embeddings/layer_norm/beta",
        "transformer/layer_{}/self_attention/query/kernel",
        "pooler_transform/kernel",
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_depths_rise_from_the_embeddings_to_the_head(naming):
    words, norm, layer, head = NAMINGS[naming]
    paths = [words, norm, *(layer.format(i) for i in range(12)), head]
    assert ke.optimizers.layer_depths(paths) == ([0, 0, *range(1, 13), 13], 13)


def test_frozen_layers_do_not_move_the_others():
    paths = ["transformer_layer_10/query/kernel", "transformer_layer_11/query/kernel", "head/bias"]
    assert ke.optimizers.layer_depths(paths) == ([11, 12, 13], 13)


@pytest.mark.parametrize(
    ("paths", "received"),
    [
        (["embedding/embeddings", "dense_1/kernel", "layer_normalization_1/gamma"], "0 stacks"),
        (["t5/encoder/block_._0/a/kernel", "t5/decoder/block_._0/a/kernel"], "2 stacks"),
        ([], "0 stacks"),
    ],
)
def test_models_without_one_stack_of_layers_are_refused(paths, received):
    with pytest.raises(ValueError, match=f"one stack of numbered layers.*{received}.*groups="):
        ke.optimizers.layer_depths(paths)


@libraries
def test_layerwise_decay_is_not_silently_ignored(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    optimizer = ke.optimizers.AdamW(layerwise_decay=0.9, library=library)
    with pytest.raises(ValueError, match="needs a model with one stack of numbered layers"):
        optimizer.build(model.trainable_variables)


@berts
def test_layers_of_a_bert_learn_at_their_rates(name):
    model = made(name)
    flavor = ke.flavor.of(model)
    groups = [("logits|classifier", ParamGroup(rate_multiplier=2.0))]
    optimizer = ke.optimizers.SGD(
        0.5, momentum=0.0, layerwise_decay=0.5, groups=groups, library=model
    )
    for variable, move in zip(model.trainable_variables, moves(optimizer, model, 1.0), strict=True):
        path = flavor.path(variable)
        if re.search("layer_0|layer_._0", path):
            expected = 0.5
        elif "embed" in path:
            expected = 0.25
        else:
            expected = 2.0 if re.search("logits|classifier", path) else 1.0
        assert move == pytest.approx(0.5 * expected, abs=1e-6), path


# --- groups --------------------------------------------------------------------------------------


def test_the_first_pattern_wins_and_exclude_holds_in_every_group():
    groups = {"head/kernel": ParamGroup(3.0), "head": ParamGroup(2.0, weight_decay=0.5)}
    rules = PathRules.of("bias$", groups, None)
    assert rules.assign(["head/kernel", "head/bias", "dense/kernel"]) == [
        VariableRule(3.0, None, False),
        VariableRule(2.0, 0.5, True),
        VariableRule(1.0, None, False),
    ]


def test_rules_come_back_from_their_config():
    rules = PathRules.of(("bias$", "gamma$"), {"head": ParamGroup(2.0, weight_decay=0.5)}, 0.9)
    assert PathRules.of(**rules.config()) == rules


@pytest.mark.parametrize("pattern", ["haed", "kernel"])
def test_a_group_without_a_variable_is_refused(pattern):
    rules = PathRules.of(
        (), [("head/", ParamGroup(2.0)), ("dense/", ParamGroup(2.0)), (pattern, ParamGroup())], None
    )
    with pytest.raises(ValueError, match=rf"must match the path.*earlier.*Received: '{pattern}'"):
        rules.assign(["head/kernel", "dense/kernel", "head/bias"])


@pytest.mark.parametrize("groups", [{"head": 0.1}, ["head"], [("head", ParamGroup(), 1)], "head"])
def test_groups_are_groups(groups):
    with pytest.raises(
        TypeError, match=r"`groups` must map patterns to `ke\.optimizers\.ParamGroup`s"
    ):
        ke.optimizers.AdamW(groups=groups)


@pytest.mark.parametrize("arguments", [{"exclude": ("(",)}, {"groups": {"[": ParamGroup()}}])
def test_patterns_are_regular_expressions(arguments):
    with pytest.raises(ValueError, match=r"takes regular expressions.*Received: '[(\[]'"):
        ke.optimizers.AdamW(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate_multiplier": -1.0}, r"`rate_multiplier` must be a number >= 0\. Received"),
        ({"weight_decay": "0"}, r"`weight_decay` must be a number >= 0\. Received"),
        ({"weight_decay": 0.1, "exclude": True}, "A group that is excluded does not decay"),
    ],
)
def test_a_groups_numbers_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParamGroup(**arguments)


# --- describe ------------------------------------------------------------------------------------


@libraries
def test_describe_shows_what_each_variable_gets(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="head")])
    groups = {"kernel": ParamGroup(0.5, weight_decay=0.25)}
    optimizer = ke.optimizers.AdamW(exclude="bias$", groups=groups, library=library)
    scaling = keras.optimizers if library == "keras" else keras.mixed_precision
    model.compile(scaling.LossScaleOptimizer(optimizer), "mse")
    lines = ke.optimizers.describe(model).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["0.5", "0.25"], ["1", "0"]]
    assert lines[1].endswith("head/kernel")


def test_describe_is_for_our_optimizers():
    keras = keras_of("keras")
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    with pytest.raises(TypeError, match="`describe` needs a model compiled with an optimizer of"):
        ke.optimizers.describe(model)
