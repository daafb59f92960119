"""Sparsity patterns: N:M and blocks, on kernels of any rank."""

import numpy as np
import pytest
from compression_helpers import ready
from covering import covering, sampled
from fit_helpers import fit
from zoo import FEW, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.compression._masks import Mask
from keras_efficient.compression._sparsity_patterns import Pattern, pattern_of
from keras_efficient.parametrize._parametrized_layer import transforms


@pytest.mark.parametrize(
    "text, pattern",
    [
        ("unstructured", Pattern("unstructured")),
        ("2:4", Pattern("2:4", 2, 4)),
        ("1:16", Pattern("1:16", 1, 16)),
        ("block:1x4", Pattern("block:1x4", block=(1, 4))),
        ("block:16x1", Pattern("block:16x1", block=(16, 1))),
    ],
)
def test_patterns_are_read(text, pattern):
    assert pattern_of(text) == pattern


@pytest.mark.parametrize(
    "text", ["", "4:2", "4:4", "0:4", "2-4", "block:1x1", "block:0x4", "block:4", None, 2]
)
def test_other_patterns_are_refused(text):
    with pytest.raises(ValueError, match=r"`pattern` must be 'unstructured', 'N:M'.*Received"):
        pattern_of(text)


def test_a_pattern_that_fixes_a_sparsity_has_it():
    assert pattern_of("1:4").sparsity == 0.75
    assert pattern_of("unstructured").sparsity is None


@sampled()
@pytest.mark.parametrize(
    "specimen, text", covering(FEW, ["2:4", "block:4x1", "1:4", "block:1x2"], strength=1)
)
def test_every_kernel_of_the_zoo_has_the_pattern_after_training(specimen, text):
    model = ready(specimen)
    before = {w.path: w.matrix(w.value).numpy() for w in ke.parametrize.select(model, caller="")}
    pattern = pattern_of(text)
    layers = None if specimen.name != "keras-sequential" else "dense"
    if specimen.name == "keras-sequential" and text == "block:1x2":
        pytest.skip("its one kernel has 3 outputs")
    ke.prune(model, 0.5 if pattern.group is None else None, pattern=text, layers=layers)
    masks = transforms(model, Mask)
    assert masks
    for t in masks:
        chosen = np.abs(before[t.weight.path])
        mask = t.weight.matrix(t.mask).numpy()
        inputs, outputs = mask.shape
        if pattern.group is not None:
            groups = mask.reshape(-1, pattern.group, outputs)
            assert (groups.sum(1) == pattern.kept).all()
            # The largest of every group are kept.
            order = np.argsort(-chosen.reshape(groups.shape), axis=1)
            kept = np.take_along_axis(groups, order[:, : pattern.kept], 1)
            assert kept.all()
        else:
            high, wide = pattern.block
            blocks = mask.reshape(inputs // high, high, outputs // wide, wide)
            assert (blocks == blocks[:, :1, :, :1]).all()
            assert blocks[:, 0, :, 0].sum() == round(blocks[:, 0, :, 0].size * 0.5)
            sums = chosen.reshape(blocks.shape).sum((1, 3))
            kept = blocks[:, 0, :, 0] > 0
            assert sums[~kept].max() <= sums[kept].min()
    features, labels = specimen.batch(8)
    fit(model, features, labels, batch_size=4)
    for t in masks:
        value = t.weight.matrix(t.weight.value).numpy()
        np.testing.assert_array_equal(value != 0, t.weight.matrix(t.mask).numpy() > 0)


def test_an_attention_kernels_groups_run_over_its_inputs():
    """A [8, 2, 4] kernel has 8 inputs, and so has [2, 4, 8] of the output projection."""
    model = ZOO[0].make()
    ke.prune(model, pattern="2:4", layers="attention")
    by_path = {t.weight.path.rsplit("/", 2)[-2]: t.mask.numpy() for t in transforms(model, Mask)}
    query, output = by_path["query"], by_path["attention_output"]
    assert query.shape == (8, 2, 4) and output.shape == (2, 4, 8)
    assert (query.reshape(2, 4, 8).sum(1) == 2).all()
    assert (output.reshape(2, 4, 8).sum(1) == 2).all()


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize(
    "text, rule",
    [
        ("2:4", "whole groups of 4 inputs.*Received: 'dense/kernel' with 6 inputs"),
        ("block:4x1", "whole blocks of 4x1.*Received: 'dense/kernel' with 6x9"),
        ("block:1x4", "whole blocks of 1x4.*Received: 'dense/kernel' with 6x9"),
    ],
)
def test_a_pattern_that_does_not_divide_is_refused(library, text, rule):
    layers = keras_of(library).layers
    model = keras_of(library).Sequential([layers.Input((6,)), layers.Dense(9, name="dense")])
    before = [type(layer) for layer in model.layers]
    with pytest.raises(ValueError, match=rule):
        ke.prune(model, None if text == "2:4" else 0.5, pattern=text, layers="kernel")
    # Nothing was attached.
    assert [type(layer) for layer in model.layers] == before and not transforms(model)
