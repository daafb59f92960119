"""Blocks that a model or a user's layer makes of the library's plain layers."""

import functools

import numpy as np
import pytest
from covering import covering, sampled
from fit_helpers import assert_same, batches, compiled
from plain_block_models import (
    LENGTH,
    WIDTH,
    block_class,
    data,
    fixed,
    functional,
    inputs,
    model_class,
    subclassed,
)
from unpad_methods import METHODS, SAME, surroundings
from zoo import CLASSES, VOCABULARY, ZOO, keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def run(library, make, norm_first, masked=True, method="plain", unpad=False):
    """Train for three updates; return the model, its losses and the report of `ke.unpad`."""
    with surroundings(library, method):
        model = make(library, norm_first, masked)
        METHODS[method](model)
        report = ke.unpad(model) if unpad else None
        compiled(
            library,
            model,
            metrics=None,
            weighted_metrics=None,
            jit_compile=method == "jit_compile",
        )
    x, y = data(masked=masked)
    # tf_keras and Keras 3 take a tuple of inputs from a dataset, not a list.
    x = inputs(x, make)
    x = tuple(x) if isinstance(x, list) else x
    history = model.fit(batches(x, y, batch_size=8), shuffle=False, verbose=0).history
    return model, history["loss"], report


#: Padded models, which several cases are compared with.
padded = functools.cache(run)


def exists(library, make, norm_first, masked, method):
    """Whether there is something to recompute or to adapt: a layer that holds a block."""
    return (make is subclassed or method not in ("remat", "adapters")) and (
        masked or method == "plain"
    )


PAIRWISE = covering(
    ["keras", "tf_keras"],
    [subclassed, functional, model_class],
    [False, True],
    [True, False],
    METHODS,
    keep=exists,
)


# The full product would take minutes.
@pytest.mark.parametrize(
    "library, make, norm_first, masked, method", [case for case in PAIRWISE if not case.marks]
)
@sampled(3)
def test_trains_like_the_padded_model(library, make, norm_first, masked, method):
    same = "plain" if method in SAME else method
    plain, expected, _ = padded(library, make, norm_first, masked, same)
    model, losses, report = run(library, make, norm_first, masked, method, unpad=True)
    if method != "bfloat16":
        # Rounding alone may exceed the tolerance, and such a block computes as before.
        assert len(report.blocks) == 2 and not report.unchanged
    assert report.masked == masked and report.first_token_only
    tolerance = 3e-2 if method == "bfloat16" else 3e-6
    np.testing.assert_allclose(losses, expected, atol=max(tolerance, 1e-5))
    assert_same(model, plain, atol=tolerance)


@libraries
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_mask_that_keras_passes_on(library, dropout):
    """It masks queries, too. Padding in front leaves the first token without any to attend to."""
    layers = keras_of(library).layers
    ids = layers.Input((LENGTH,), dtype="int32", name="token_ids")
    x = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)(ids)
    for _ in range(2):
        # The operator + would lose the mask.
        y = layers.MultiHeadAttention(2, 4, dropout=dropout)(x, x)
        x = layers.LayerNormalization()(layers.add([x, y]))
        y = layers.Dense(WIDTH)(layers.Dense(16)(x))
        x = layers.LayerNormalization()(layers.add([x, y]))
    outputs = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))
    model = fixed(keras_of(library).Model(ids, outputs))
    features, _ = data(4)
    batch = features["token_ids"]
    batch[1] = [0, 0, 3, 4, 0, 5, 0]
    expected = model(batch)
    report = ke.unpad(model)
    # Keras 3 loses the mask after the first attention, so the second block reads the padding.
    assert report.masked and len(report.blocks) == (1 if library == "keras" else 2)
    assert all("does not agree" in reason for reason in report.unchanged.values())
    np.testing.assert_allclose(model(batch), expected, atol=1e-5)


@libraries
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_block_that_is_called_several_times(library, norm_first):
    model = subclassed(library, norm_first, times=2)
    x, _ = data(4)
    expected = model(inputs(x))
    report = ke.unpad(model)
    assert len(report.blocks) == 2 and not report.first_token_only
    np.testing.assert_allclose(model(inputs(x)), expected, atol=1e-5)


@libraries
def test_remove_restores_every_layer(library):
    model = subclassed(library, norm_first=True, dropout=0.1)
    state = [np.array(w) for w in model.get_weights()]

    def calls():
        # Some layers of tf_keras have a `call` of their own from the start.
        return [vars(layer).get("call") for layer in (model, *model._flatten_layers())]

    own = calls()
    architecture = ke.architecture.describe(model)
    assert calls() == own
    assert [block.path for block in architecture.blocks] == ["block_0", "block_1"]
    assert all(block.norm_first and len(block.chain) == 7 for block in architecture.blocks)
    report = ke.unpad(model)
    assert calls() != own
    report.remove()
    assert calls() == own
    for before, after in zip(state, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@libraries
def test_dropout_of_plain_blocks_drops(library):
    model = subclassed(library, dropout=0.5)
    ke.unpad(model)
    x, _ = data(4)
    first, second = (np.asarray(model(inputs(x), training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(model(inputs(x)), model(inputs(x)))


@libraries
def test_a_model_that_reads_padding_is_refused_and_left_alone(library):
    layers = keras_of(library).layers
    model = subclassed(library, wrap=layers.GlobalAveragePooling1D())
    x, _ = data(4)
    expected = np.asarray(model(inputs(x)))
    with pytest.raises(ValueError, match="padding"):
        ke.unpad(model)
    np.testing.assert_array_equal(model(inputs(x)), expected)


def odd(library, change):
    """A model of one tutorial block that computes something else, and one that does not."""
    keras = keras_of(library)
    layers = keras.layers
    Block = block_class(library)

    class Odd(Block):
        def call(self, inputs, attention_mask=None, training=None):
            x = self.att(inputs, inputs, attention_mask=attention_mask)
            if change == "scaled sum":
                x = self.norm_1(inputs + 0.5 * x)
            elif change == "read inside":
                x = self.norm_1(inputs + x)
                return self.norm_2(x + self.ffn(x)) + self.dropout_1(self.ffn.layers[0](x)[..., :8])
            elif change == "other values":
                x = self.att(inputs, 2 * inputs, attention_mask=attention_mask)
                x = self.norm_1(inputs + x)
            elif change == "no residual":
                return self.norm_2(self.ffn(self.norm_1(inputs + x)))
            return self.norm_2(x + self.ffn(x))

    ids = layers.Input((LENGTH,), dtype="int32", name="token_ids")
    mask = layers.Input((LENGTH,), dtype="int32", name="padding_mask")
    attended = layers.Reshape((1, LENGTH))(mask)
    x = layers.Embedding(VOCABULARY, WIDTH, name="token_embedding")(ids)
    x = Odd(name="odd")(x, attention_mask=attended)
    x = Block(name="plain")(x, attention_mask=attended)
    return fixed(keras.Model([ids, mask], layers.Dense(CLASSES)(x[:, 0])))


@libraries
@pytest.mark.parametrize("change", ["scaled sum", "read inside", "other values", "no residual"])
def test_a_block_that_computes_something_else_is_left_alone(library, change):
    model = odd(library, change)
    x, _ = data(4)
    expected = np.asarray(model(inputs(x)))
    report = ke.unpad(model)
    assert report.blocks == ("plain",) and [*report.unchanged] == ["odd"]
    np.testing.assert_allclose(model(inputs(x)), expected, atol=1e-5)


def test_functional_models_of_the_zoo_have_no_whole_block():
    """They have attention and one norm, and say what is missing."""
    for specimen in ZOO:
        if specimen.name.endswith(("functional", "keras-subclassed")):
            found = ke.architecture.describe(specimen.make())
            assert not found.blocks and len(found.unknown) == 1, specimen
            (reason,) = found.unknown.values()
            assert "MultiHeadAttention" in reason and "no known class" not in reason
