"""Pruning by reconstruction: the solver against its definition, and over the zoo."""

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import BOTH, libraries, mostly, ready
from covering import sampled
from zoo import FEW_FIRST, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.architecture._heads import without_head
from keras_efficient.compression import Reconstruction, _reconstruction as reconstruction
from keras_efficient.compression._masks import Mask
from keras_efficient.compression._observers import batches_of, input_grams
from keras_efficient.compression._reconstruction import prune_reconstructed
from keras_efficient.compression._sparsity_patterns import pattern_of
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transforms


def correlated(rng, n, inputs):
    """Inputs of different sizes that partly replace each other."""
    mixed = rng.normal(size=(n, inputs)) @ rng.normal(size=(inputs, inputs))
    return (mixed * rng.uniform(0.1, 3, inputs)).astype("float32")


def by_definition(w, gram, kept_of, damping=0.01):
    """Inputs in turn; each inverse is computed anew from the inputs that are left."""
    w, h = w.astype("float64").copy(), gram.astype("float64")
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    left = [np.linalg.inv(h[i:, i:])[0] for i in range(len(h))]
    mask = np.ones(w.shape, bool)
    for i, inverse in enumerate(left):
        kept_of(i, w, np.array([row[0] for row in left]), mask)
        error = np.where(mask[i], 0, w[i]) / inverse[0]
        w[i:] -= inverse[:, None] * error
    return w * mask


def two_of_four(i, w, diagonal, mask):
    if i % 4 == 0:
        cost = w[i : i + 4] ** 2 / diagonal[i : i + 4, None]
        mask[i : i + 4] = np.argsort(np.argsort(cost, axis=0), axis=0) >= 2


def most_of_all(i, w, diagonal, mask):
    if i == 0:
        cost = w**2 / diagonal[:, None]
        mask[:] = cost > np.sort(cost, axis=None)[round(0.7 * w.size) - 1]


@pytest.mark.parametrize(
    "pattern, sparsity, kept_of", [("2:4", 0.5, two_of_four), ("unstructured", 0.7, most_of_all)]
)
def test_the_solver_is_the_definition(pattern, sparsity, kept_of):
    rng = np.random.default_rng(0)
    x, w = correlated(rng, 200, 24), rng.normal(size=(24, 10)).astype("float32")
    found = prune_reconstructed(w, x.T @ x, sparsity, pattern_of(pattern))
    np.testing.assert_allclose(found, by_definition(w, x.T @ x, kept_of), rtol=0, atol=1e-4)


def missed(gram, w, other):
    """‖XW - XV‖², of XᵀX."""
    return float(np.trace((w - other).T @ gram @ (w - other)))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "3:5"])
def test_blocks_give_the_same_number_of_zeros_and_a_smaller_error(pattern, monkeypatch):
    monkeypatch.setattr(reconstruction, "BLOCK", 12)
    rng = np.random.default_rng(1)
    x, w = correlated(rng, 300, 40), rng.normal(size=(40, 7)).astype("float32")
    pattern = pattern_of(pattern)
    sparsity = pattern.sparsity or 0.63
    found = prune_reconstructed(w, x.T @ x, sparsity, pattern)
    if pattern.group:
        groups = (found != 0).reshape(40 // pattern.group, pattern.group, 7).sum(1)
        np.testing.assert_array_equal(groups, pattern.kept)
        order = np.argsort(np.abs(w).reshape(40 // pattern.group, pattern.group, 7), axis=1)
        rank = np.argsort(order, axis=1).reshape(40, 7)
        plain = np.where(rank >= pattern.group - pattern.kept, w, 0)
    else:
        assert np.count_nonzero(found) == round(w.size * (1 - sparsity))
        plain = np.where(np.abs(w) > np.quantile(np.abs(w), sparsity), w, 0)
    assert missed(x.T @ x, w, found) < 0.6 * missed(x.T @ x, w, plain)


def test_inputs_that_are_always_zero_go_first_but_not_beyond_the_target():
    rng = np.random.default_rng(2)
    x, w = correlated(rng, 50, 8), rng.uniform(1, 2, size=(8, 4)).astype("float32")
    x[:, [1, 5]] = 0
    found = prune_reconstructed(w, x.T @ x, 0.25, pattern_of("unstructured"))
    assert not found[[1, 5]].any()
    np.testing.assert_array_equal(np.delete(found, [1, 5], 0), np.delete(w, [1, 5], 0))
    for sparsity in (0.0, 0.125):
        found = prune_reconstructed(w, x.T @ x, sparsity, pattern_of("unstructured"))
        assert np.count_nonzero(found == 0) == round(sparsity * w.size)
    found = prune_reconstructed(w, np.zeros((8, 8)), 0.25, pattern_of("unstructured"))
    assert np.count_nonzero(found == 0) == 8


@pytest.mark.parametrize("sparsity, pattern", [(0.7, "unstructured"), (0.5, "2:4")])
def test_zeros_stay_zero(sparsity, pattern, monkeypatch):
    monkeypatch.setattr(reconstruction, "BLOCK", 12)
    rng = np.random.default_rng(3)
    x, w = correlated(rng, 300, 40), rng.normal(size=(40, 7)).astype("float32")
    w[rng.uniform(size=w.shape) < 0.3] = 0
    found = prune_reconstructed(w, x.T @ x, sparsity, pattern_of(pattern))
    assert not found[w == 0].any()
    zeros = np.count_nonzero(found == 0)
    assert zeros == round(sparsity * w.size) if pattern == "unstructured" else zeros >= w.size / 2


def kernels(model):
    """Arguments that select the head too where a model has no other kernel."""
    return {"layers": "kernel"} if len(ke.parametrize.select(model, caller="")) == 1 else {}


@sampled()
@pytest.mark.parametrize("specimen", FEW_FIRST, ids=repr)
def test_layers_of_the_zoo_have_a_smaller_error_than_by_magnitude(specimen):
    x, y = specimen.batch(24)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model = ready(specimen)
    chosen = ke.parametrize.select(model, kernels(model).get("layers"), caller="")
    weights = without_head(model, chosen)
    grams = input_grams(model, weights, batches_of(data, ""))
    assert len(grams) == len(weights)
    before = {weight.path: weight.matrix(weight.value).numpy() for weight in weights}
    report = ke.prune(model, 0.6, criterion=Reconstruction(data), **kernels(model))
    assert "at once" in str(report)
    errors = np.zeros(2)
    for weight in weights:
        w, now = before[weight.path], weight.matrix(weight.value).numpy()
        plain = np.where(np.abs(w) > np.quantile(np.abs(w), 0.6), w, 0)
        errors += [missed(grams[weight], w, other) for other in (now, plain)]
        assert np.count_nonzero(now) == round(0.4 * weight.size)
    assert errors[0] < errors[1]
    ke.merge(model)
    assert not parametrized_layers(model)


@sampled()
@libraries
def test_zeros_stay_in_training(library):
    data = tf.data.Dataset.from_tensor_slices(BOTH[library].batch(24)).batch(8)
    model = ready(BOTH[library])
    ke.prune(model, 0.6, criterion=Reconstruction(data), **kernels(model))
    ke.accumulate(model, 2)
    model.fit(data, verbose=0)
    for mask in transforms(model, Mask):
        zeros = np.count_nonzero(mask.weight.value.numpy() == 0)
        assert zeros == mask.weight.size - round(mask.weight.size * 0.4), mask.weight.path


@mostly("keras")
def test_sparser_step_by_step(library):
    specimen = ZOO[0] if library == "keras" else ZOO[4]
    batch = specimen.batch(16)
    model = ready(specimen)
    for target in (0.3, 0.6):
        ke.prune(model, target, criterion=Reconstruction(batch), **kernels(model))
        report = ke.merge(model)
        assert report is not None
    for weight in without_head(model, ke.parametrize.select(model, caller="")):
        share = np.mean(weight.value.numpy() == 0)
        assert share == pytest.approx(0.6, abs=1 / weight.size)


def two_layers(library):
    layers = keras_of(library).layers
    model = keras_of(library).Sequential(
        [layers.Input((6, 6, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(5)]
    )
    model.compile("sgd", "mse")
    return model


@libraries
def test_convolutions_go_by_magnitude_and_the_report_says_so(library):
    model = two_layers(library)
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 3)).astype("float32")
    conv, dense = (model.layers[0].kernel.numpy(), model.layers[-1].kernel.numpy())
    report = ke.prune(model, 0.5, layers="kernel", criterion=Reconstruction(x))
    assert len(report.by_magnitude) == 1 and "conv" in report.by_magnitude[0]
    assert f"by magnitude, not by the data: {report.by_magnitude[0]}" in str(report)
    kept = model.layers[0].kernel.numpy()
    np.testing.assert_array_equal(kept, np.where(kept != 0, conv, 0))
    assert np.count_nonzero(kept) == conv.size // 2
    after = model.layers[-1].kernel.numpy()
    assert not np.allclose(after[after != 0], dense[after != 0])


@libraries
def test_inputs_that_are_not_finite_change_nothing(library):
    model = two_layers(library)
    before = model.get_weights()
    with pytest.raises(
        ValueError, match=r"must be finite to change weights by them\. Received: those of"
    ):
        x = np.full((4, 6, 6, 3), np.nan, "float32")
        ke.prune(model, 0.5, layers="kernel", criterion=Reconstruction(x))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not transforms(model)
    assert not any(view.call_wrappers for view in parametrized_layers(model))


CASES = {
    "growing": ({"end_step": 10}, r"at once.*begin_step=0 and end_step=10"),
    "blocks": ({"pattern": "block:1x4"}, r"at once, by single numbers.*'block:1x4'"),
    "global": ({"scope": "global"}, r"at once.*scope='global'"),
    "no data": ({"criterion": Reconstruction([])}, "Received: no batch at all"),
    "words": ({"criterion": Reconstruction("text")}, "needs a batch"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_use(case):
    kwargs, message = CASES[case]
    model = two_layers("keras")
    x = np.ones((4, 6, 6, 3), "float32")
    arguments = {"criterion": Reconstruction(x), "layers": "dense", **kwargs}
    with pytest.raises((ValueError, TypeError), match=message):
        ke.prune(model, 0.5, **arguments)
    assert not transforms(model)


def test_weights_with_transforms_are_refused():
    model = two_layers("keras")
    ke.lora(model, rank=2, layers="dense")
    with pytest.raises(ValueError, match=r"which has transforms\. Do this first, or fold"):
        criterion = Reconstruction(np.ones((4, 6, 6, 3), "float32"))
        ke.prune(model, 0.5, layers="dense", criterion=criterion)


@pytest.mark.parametrize("damping", [0, -1.0, "0.1", None, True, float("inf")])
def test_damping(damping):
    with pytest.raises(ValueError, match=r"`damping` must be above 0 and finite\. Received: "):
        Reconstruction([], damping=damping)


def test_too_little_damping_is_named():
    model = two_layers("keras")
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    with pytest.raises(ValueError, match=r"must be invertible.*dense.*Raise it, or give more data"):
        ke.prune(model, 0.5, layers="dense", criterion=Reconstruction(x, damping=1e-300))


@sampled()
@libraries
def test_models_that_compile_their_call_are_measured_and_left_as_they_are(library):
    keras = keras_of(library)

    @keras.saving.register_keras_serializable()
    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.head = keras.layers.Dense(16), keras.layers.Dense(2)

        @tf.function
        def call(self, x):
            return self.head(self.inner(x))

    x = np.random.default_rng(0).normal(size=(32, 12)).astype("float32")
    model = Compiled()
    model(x)
    before = model.inner.kernel.numpy()
    report = ke.prune(model, 0.5, criterion=Reconstruction(x))
    assert report.by_magnitude == ()
    after = model.inner.kernel.numpy()
    assert not np.allclose(after[after != 0], before[after != 0])
    assert not tf.config.functions_run_eagerly()
    graph = tf.function(model.call).get_concrete_function(x).graph
    functions = graph.as_graph_def().library.function
    assert not any(n.op == "EagerPyFunc" for f in functions for n in f.node_def)
