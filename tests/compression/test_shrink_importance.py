"""What `ke.shrink` keeps, by data."""

import numpy as np
import pytest
import tensorflow as tf
from test_shrink import MODELS, features
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.compression._observers import input_grams
from keras_efficient.compression._shrink import _dataset
from keras_efficient.compression.structured.importance import (
    Importance,
    output_layers,
    remove_columns,
)
from keras_efficient.compression.structured.layer_losses import evaluated, removal_order, skippable
from keras_efficient.training._batch_loss import batch_loss

#: One kind of blocks per library; the others under `make test-all`.
FEW = [
    pytest.param(name, marks=marks)
    for name, marks in (
        ("kerashub-bert", []),
        ("hf-bert-classifier", pytest.mark.full),
        ("keras-functional", pytest.mark.full),
        ("tf_keras-functional-pre-norm", []),
    )
]
BOTH = ("kerashub-bert", "hf-bert-classifier", "keras-functional", "tf_keras-functional-pre-norm")


def compiled(name):
    model = MODELS[name]()
    keras = keras_of("keras" if name.startswith("kera") else "tf_keras")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def batch(name):
    x = features(name)
    return x, np.array([0, 1, 2, 0], "int32")


def test_columns_are_removed_as_in_a_search_over_all():
    """With two inputs of the same values one is removed, and the other one gets its weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6))
    x[:, 4] = x[:, 1]
    w = rng.normal(size=(6, 3))
    kept, new = remove_columns(w, x.T @ x, 1, 5, damping=1e-9)
    assert set(range(6)) - set(kept) <= {1, 4}
    np.testing.assert_allclose(x[:, kept] @ new, x @ w, atol=1e-4)
    # The error is the least of all choices of two.
    kept, new = remove_columns(w, x.T @ x, 1, 4, damping=1e-9)

    def error(columns):
        best, *_ = np.linalg.lstsq(x[:, columns], x @ w, rcond=None)
        return np.sum((x @ w - x[:, columns] @ best) ** 2)

    choices = [[c for c in range(6) if c not in (4, out)] for out in (0, 1, 2, 3, 5)]
    found = np.sum((x @ w - x[:, kept] @ new) ** 2)
    np.testing.assert_allclose(found, min(map(error, choices)), rtol=1e-3)


def test_heads_are_removed_whole():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(100, 8)), rng.normal(size=(8, 3))
    w[2:4] *= 1e-3
    kept, new = remove_columns(w, x.T @ x, 2, 3)
    assert kept.tolist() == [0, 2, 3] and new.shape == (6, 3)


@pytest.mark.parametrize("name", BOTH)
def test_taylor_is_the_change_of_the_loss(name):
    model = compiled(name)
    x, y = tf.nest.map_structure(tf.constant, batch(name))
    architecture = ke.architecture.describe(model)
    importance = Importance(model, architecture, "taylor", [(x, y, None)])
    kernel = architecture.blocks[0].feed_forward.output.kernel
    value, before = np.array(kernel), float(batch_loss(model, (x, y, None)))
    scale = 1e-2
    for neuron in (0, 3):
        smaller = value.copy()
        smaller[neuron] *= 1 - scale
        kernel.assign(smaller)
        change = (float(batch_loss(model, (x, y, None))) - before) / scale
        kernel.assign(value)
        np.testing.assert_allclose(importance.neurons()[0][neuron], change**2, rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("importance", ["taylor", "reconstruction"])
def test_parts_of_zeros_are_removed(name, importance):
    model = compiled(name)
    blocks = ke.architecture.describe(model).blocks
    for block in blocks:
        kernel = block.feed_forward.output.kernel
        value = np.array(kernel)
        value[4:10] = 0
        kernel.assign(value)
    small, _ = ke.shrink(model, feed_forward=10, data=batch(name), importance=importance)
    x = features(name)
    before, after = (model(x, training=False), small(x, training=False))
    before, after = (getattr(o, "logits", o) for o in (before, after))
    np.testing.assert_allclose(np.asarray(after), np.asarray(before), atol=1e-5)


@pytest.mark.parametrize(
    "name, part", [("kerashub-bert", "feed_forward"), ("tf_keras-functional", "heads")]
)
def test_the_weights_that_remain_are_corrected(name, part):
    model, (x, y) = MODELS[name](), batch(name)
    x = tuple(x) if isinstance(x, list) else x
    number = {"feed_forward": 6, "heads": 1}[part]
    blocks = ke.architecture.describe(model).blocks
    layer = output_layers(blocks, part)[0]
    (weight,) = [w for w in all_weights(model) if w.layer is layer and w.kind == "kernel"]
    gram = input_grams(model, [weight], [x])[weight]
    size = {"feed_forward": 1, "heads": 4}[part]
    _, expected = remove_columns(np.array(weight.value).reshape(-1, 8), gram, size, number)
    small, _ = ke.shrink(model, data=(x, y), importance="reconstruction", **{part: number})
    kernel = output_layers(ke.architecture.describe(small).blocks, part)[0].kernel
    np.testing.assert_allclose(np.array(kernel).reshape(-1, 8), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FEW)
def test_tokens_of_the_data_need_not_be_kept(name):
    arguments = {"vocabulary": np.arange(4), "data": batch(name), "importance": "taylor"}
    report = ke.shrink(compiled(name), layers=1, **arguments).report
    assert report.sizes["vocabulary"][1] == 4 and report.sizes["layers"][1] == 1


@pytest.mark.parametrize("name", FEW)
def test_the_least_needed_block_goes_first(name):
    model, (x, y) = compiled(name), batch(name)
    x = tuple(x) if isinstance(x, list) else x
    architecture = ke.architecture.describe(model)
    data = tf.data.Dataset.from_tensors((x, y))
    order, losses = removal_order(model, architecture, data)
    count = len(architecture.blocks)
    assert len(order) == count - 1 and len(losses) == count

    def loss():
        return model.evaluate(data, verbose=0, return_dict=True)["loss"]

    np.testing.assert_allclose(losses[0], loss(), rtol=1e-5)
    found = []
    with skippable(model, architecture.blocks) as skipped:
        for number in range(count):
            for other, variable in enumerate(skipped):
                variable.assign(number == other)
            found.append(loss())
    assert order[0] == int(np.argmin(found))
    np.testing.assert_allclose(losses[1], min(found), rtol=1e-5)
    small, report = ke.shrink(model, layers=count - 1, data=(x, y))
    assert set(range(count)) - set(report.layers) == {order[0]}
    small.compile("sgd", model.loss)
    found = small.evaluate(data, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(found, losses[1], rtol=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_losses_are_compared_on_the_same_batches(name):
    """Also if the dataset is shuffled anew in each pass."""
    model, (x, _) = compiled(name), batch(name)
    x = tuple(x) if isinstance(x, list) else x
    labels = tf.data.Dataset.range(3).shuffle(3, seed=0).batch(1).take(1)
    data = labels.map(lambda label: (x, tf.repeat(label, 4)))
    assert len({int(y[0]) for _ in range(9) for _, y in data}) > 1
    data = _dataset(data)
    assert len({evaluated(model, data) for _ in range(9)}) == 1


# --- bad use -------------------------------------------------------------------------------------


def test_what_is_impossible_is_said_before_anything_is_made():
    model, data = compiled("kerashub-bert"), batch("kerashub-bert")
    for arguments, message in (
        ({}, "Received: no size"),
        ({"layers": 4}, "`layers` must be the number of blocks to keep, from 1 to 3"),
        ({"layers": [2, 1]}, "`layers` must be increasing numbers of blocks from 0 to 2"),
        ({"feed_forward": 17}, "`feed_forward` must be a number from 1 to 16, or a list of 3"),
        ({"feed_forward": [4, 5, 6]}, "All layers of BertTextClassifier have one `feed_forward`"),
        ({"heads": 1}, "The number of heads can be changed alone if each attention layer"),
        ({"hidden": 6}, "`hidden` must be a multiple of the size of a head, 4, and at most 8"),
        ({"vocabulary": [3, 2]}, "`vocabulary` must hold increasing ids of tokens from 0 to 49"),
        ({"layers": 2, "importance": "best"}, "`importance` must be one of"),
        ({"feed_forward": 8, "importance": "taylor"}, "is measured on data. Received: data=None"),
        ({"parameters": 100}, "chosen by the loss on data. Received: `parameters`"),
        ({"parameters": 100, "speedup": 2}, "takes one target. Received: parameters, speedup"),
        ({"speedup": 0.5}, "`speedup` must be a number above 1. Received: 0.5"),
        ({"parameters": 100, "layers": 2}, "the sizes are searched. Received: `parameters` with"),
        ({"layers": 2, "data": "x"}, "`data` must be a batch"),
    ):
        with pytest.raises(ValueError, match=message):
            ke.shrink(model, **arguments)
    with pytest.raises(ValueError, match="not compiled"):
        ke.shrink(model.backbone, layers=1, data=data)
    functional = MODELS["keras-functional"]()
    with pytest.raises(ValueError, match="The hidden width can be changed if it is an option"):
        ke.shrink(functional, hidden=4)


def test_models_that_cannot_be_shrunk():
    models = {specimen.name: specimen for specimen in ZOO}
    with pytest.raises(ValueError, match="there are no two dense layers"):
        ke.shrink(models["keras-functional"].make(), layers=1)
    with pytest.raises(ValueError, match=r"Received: Encoder .* a class of your own"):
        ke.shrink(models["keras-subclassed"].make(), layers=1)
    model = MODELS["kerashub-bert"]()
    report = ke.lora(model, rank=2)
    with pytest.raises(ValueError, match="which has transforms"):
        ke.shrink(model, layers=1)
    ke.merge(model)
    assert ke.shrink(model, layers=1).report.layers == (0,), report
    ke.share_weights(model, "layers", groups=1)
    with pytest.raises(ValueError, match="with shared weights"):
        ke.shrink(model, layers=1)
