"""`ke.cluster`: TF-MOT's arithmetic on every kind of model, with at most `clusters` values."""

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import (
    BOTH,
    FUNCTIONAL,
    SMALL,
    functional,
    libraries,
    mlp,
    outputs,
    quick,
    ready,
    small,
)
from covering import contract, sampled
from fit_helpers import batches, fit, mirrored
from zoo import ZOO, full_except, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.compression import _codebook as codebook
from keras_efficient.compression._centroids import initial_centroids
from keras_efficient.compression._codebook import CodebookTransform, look_up, nearest
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.parametrize._parametrized_layer import (
    parametrized_layers,
    transform_chain,
    transforms,
)


def distinct(model, paths):
    """The number of distinct values of each of these weights, after its transforms."""
    weights = {w.path: w for w in all_weights(model)}
    return {path: len(np.unique(effective_value(weights[path]))) for path in paths}


def effective_value(weight):
    chain = transform_chain(weight)
    return (weight.value if chain is None else chain.value()).numpy()


def adam(library, rate=0.01):
    return keras_of(library).optimizers.Adam(rate)


# --- the arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "compiled"])
def test_values_and_gradients_are_those_of_tf_mot(way):
    rng = np.random.default_rng(0)
    value = tf.Variable(rng.normal(size=(40, 3, 5)).astype("float32"))
    centroids = tf.Variable(rng.normal(size=8).astype("float32"))
    factor = tf.constant(rng.normal(size=(40, 3, 5)).astype("float32"))
    algorithm = tf_mot("clustering.keras.clustering_algorithm").ClusteringAlgorithm(centroids)
    with tf.GradientTape() as tape:
        indices = algorithm.get_pulling_indices(value)
        expected = algorithm.get_clustered_weight(indices, value)
        loss = tf.reduce_sum(factor * expected**2)
    wanted = [tf.convert_to_tensor(g) for g in tape.gradient(loss, [value, centroids])]
    with tf.GradientTape() as tape:
        ours = look_up(tf.convert_to_tensor(value), centroids, compiled=way == "compiled")
        loss = tf.reduce_sum(factor * ours**2)
    np.testing.assert_array_equal(nearest(value, tf.convert_to_tensor(centroids)), indices)
    np.testing.assert_array_equal(ours, expected)
    for ours, theirs in zip(tape.gradient(loss, [value, centroids]), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name, method", [("linear", "LINEAR"), ("density", "DENSITY_BASED")])
def test_centroids_start_where_tf_mot_puts_them(name, method, sparse):
    rng = np.random.default_rng(1)
    value = rng.normal(size=(20, 30)).astype("float32")
    if sparse:
        value[np.abs(value) < 0.5] = 0
    config = tf_mot("clustering.keras.cluster_config").CentroidInitialization
    factory = tf_mot("clustering.keras.clustering_centroids").CentroidsInitializerFactory
    make = factory.get_centroid_initializer(config[method])
    made = make(tf.constant(value), 9, preserve_sparsity=sparse).get_cluster_centroids()
    ours = initial_centroids(value, 9, name, sparse)
    # TF-MOT may return equal centroids, which ours replaces by other values.
    assert set(np.unique(made)) <= set(ours)
    assert len(ours) == len(np.unique(ours)) == 9
    assert (0 in ours) == sparse


@pytest.mark.parametrize("sparse", [False, True])
def test_kmeans_ends_where_every_centroid_is_the_mean_of_its_numbers(sparse):
    value = np.random.default_rng(2).normal(size=4000).astype("float32")
    if sparse:
        value[np.abs(value) < 0.5] = 0
    centroids = initial_centroids(value, 6, "kmeans++", sparse)
    place = np.argmin(np.abs(value[:, None] - centroids), 1)
    means = [value[place == k].mean() for k in range(6) if not (sparse and centroids[k] == 0)]
    others = centroids[centroids != 0] if sparse else centroids
    np.testing.assert_allclose(others, means, atol=1e-5)
    assert (0 in centroids) == sparse


def test_a_large_weight_is_seeded_by_a_part_of_it_always_the_same():
    value = np.random.default_rng(3).normal(size=120_000).astype("float32")
    first, second = (initial_centroids(value, 16, "kmeans++", False) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    error = np.abs(value[:, None] - first).min(1)
    assert np.sqrt(np.mean(error**2)) < 0.12


def test_few_distinct_values_are_all_found():
    value = np.float32([0, 0, 0, 0.5, 0.5, -1, 2, 2, 2, 2])
    for name in ("kmeans++", "linear", "density"):
        for sparse in (False, True):
            assert len(initial_centroids(value, 4, name, sparse)) == 4
    np.testing.assert_array_equal(initial_centroids(value, 4, "kmeans++", True), [-1, 0, 0.5, 2])


# --- on models -----------------------------------------------------------------------------------


@contract("files")
@sampled()
@pytest.mark.parametrize("specimen", full_except("keras-functional", "tf_keras-subclassed"))
def test_trains_saves_and_merges_with_so_many_values(specimen, tmp_path):
    layers = "embedding|kernel" if specimen.name == "keras-sequential" else None
    x, y = specimen.batch(12)
    optimizer = adam(specimen.library)
    model = ready(specimen, optimizer=optimizer)
    report = ke.cluster(model, 4, layers=layers)
    assert set(distinct(model, report.weights).values()) == {4}
    assert report.bits == 2 and "4 values each (2 bits)" in str(report)
    before = [t.centroids.numpy() for t in transforms(model, CodebookTransform)]
    beneath = {w.path: w.value.numpy() for w in all_weights(model)}
    fit(model, x, y, epochs=2)
    assert max(distinct(model, report.weights).values()) <= 4
    for old, now in zip(before, transforms(model, CodebookTransform), strict=True):
        assert np.abs(now.centroids.numpy() - old).max() > 0
    for weight in all_weights(model):
        if weight.path in report.weights:
            assert np.abs(weight.value.numpy() - beneath[weight.path]).max() > 0

    expected = outputs(model, x)
    file = str(tmp_path / "w.weights.h5")
    model.save_weights(file)
    other = specimen.make()
    ke.cluster(other, 4, layers=layers, initialization="linear")
    other.load_weights(file)
    np.testing.assert_allclose(outputs(other, x), expected, atol=1e-6)

    ke.merge(model)
    assert not parametrized_layers(model)
    assert max(distinct(model, report.weights).values()) <= 4
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)


@sampled()
@functional
def test_a_whole_model_file_holds_the_clustered_values(specimen, tmp_path):
    model = specimen.make()
    x, _ = specimen.batch(4)
    report = ke.cluster(model, 4)
    file, expected = str(tmp_path / "model.keras"), outputs(model, x)
    model.save(file)
    loaded = keras_of(specimen.library).models.load_model(file)
    assert set(distinct(loaded, report.weights).values()) == {4}
    np.testing.assert_allclose(outputs(loaded, x), expected, atol=1e-6)
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)


@sampled()
@pytest.mark.parametrize("specimen", full_except(*SMALL, among=[*SMALL, *ZOO]))
def test_zeros_stay_zero(specimen):
    x, y = specimen.batch(12)
    model = specimen.make()
    layers = "kernel" if specimen.name == "keras-sequential" else None
    ke.prune(model, 0.5, layers=layers)
    ke.merge(model)
    report = ke.cluster(model, 5, preserve_sparsity=True, layers=layers)
    chosen = [w for w in all_weights(model) if w.path in report.weights]
    zeros = {w.path: w.value.numpy() == 0 for w in chosen}
    quick(specimen.library, model, adam(specimen.library, 0.05))
    fit(model, x, y, epochs=3)
    for weight in chosen:
        value = effective_value(weight)
        assert (value[zeros[weight.path]] == 0).all()
        assert len(np.unique(value)) <= 5
    ke.merge(model)
    for weight in chosen:
        assert (weight.value.numpy()[zeros[weight.path]] == 0).all()
        assert len(np.unique(weight.value.numpy())) <= 5


@contract("xla")
@sampled()
@libraries
def test_xla_computes_the_same(library):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6)).astype("float32"), rng.integers(0, 3, 12)
    runs = []
    for jit in (False, True):
        model = mlp(library)
        ke.cluster(model, 4, layers="kernel")
        quick(library, model, jit_compile=jit)
        fit(model, x, y, epochs=2)
        runs.append(model.get_weights())
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def large(library):
    """A model with a weight whose look-up XLA compiles in training."""
    keras = keras_of(library)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(256, "tanh"), keras.layers.Dense(256), keras.layers.Dense(3)]
    return keras.Sequential([keras.layers.Input((6,)), *layers])


@pytest.mark.full
@sampled()
@libraries
def test_a_large_weight_trains_compiled_and_on_two_replicas(library, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6)).astype("float32"), rng.integers(0, 3, 12)
    runs, compiled_calls = [], []
    traced = codebook._look_up_compiled
    monkeypatch.setattr(
        codebook, "_look_up_compiled", lambda *a: compiled_calls.append(1) or traced(*a)
    )
    for least, replicas in ((1 << 30, 1), (1 << 16, 1), (1 << 16, 2)):
        monkeypatch.setattr(codebook, "_LARGE", least)
        with mirrored(replicas).scope():
            optimizer = keras_of(library).optimizers.SGD(0.01)
            model = quick(library, large(library), optimizer)
        ke.cluster(model, 8)
        model.fit(batches(x, y, batch_size=12), epochs=3, verbose=0)
        runs.append((model.get_weights(), len(compiled_calls)))
    assert runs[0][1] == 0 < runs[1][1] < runs[2][1]
    for other, _ in runs[1:]:
        for a, b in zip(runs[0][0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@contract("replicas")
@sampled()
@small
def test_two_replicas_train_as_one(specimen):
    x, y = specimen.batch(12)
    runs = []
    for replicas in (1, 2):
        with mirrored(replicas).scope():
            model = ready(specimen)
        ke.cluster(model, 4)
        model.fit(batches(x, y, batch_size=12), epochs=2, verbose=0)
        runs.append(model.get_weights())
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@contract("mixed_precision")
@sampled()
@libraries
def test_mixed_precision(library):
    keras = keras_of(library)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = keras.Sequential(
        [keras.layers.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)]
    )
    ke.cluster(model, 4)
    model.compile("adam", "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    history = fit(model, x, np.ones((8, 3), "float32"), batch_size=8, epochs=5)["loss"]
    assert history[-1] < history[0]
    kernel = model.layers[-2].kernel
    assert len(np.unique(np.asarray(kernel))) <= 4
    assert transforms(model, CodebookTransform)[0].centroids.dtype == tf.float32


@sampled()
@small
def test_centroids_may_stay_where_they_are(specimen):
    x, y = specimen.batch(12)
    optimizer = adam(specimen.library)
    model = ready(specimen, optimizer=optimizer)
    ke.cluster(model, 4, trainable=False)
    before = [t.centroids.numpy() for t in transforms(model, CodebookTransform)]
    beneath = model.get_weights()
    fit(model, x, y, epochs=2)
    for old, now in zip(before, transforms(model, CodebookTransform), strict=True):
        np.testing.assert_array_equal(now.centroids.numpy(), old)
    assert max(np.abs(a - b).max() for a, b in zip(beneath, model.get_weights(), strict=True)) > 0


def test_the_summary_counts_indices_and_centroids():
    model = ZOO[0].make()
    report = ke.cluster(model, 4)
    row = next(w for w in ke.summary(model).weights if w.path == report.weights[0])
    assert row.bits == 2
    assert row.bytes == np.prod(row.shape) * 2 / 8 + 4 * 4
    assert row.transforms == ("4 clusters",)


def test_lora_deltas_are_clustered_too():
    specimen = BOTH["keras"]
    x, y = specimen.batch(12)
    model = ready(specimen, optimizer=adam("keras", 0.05))
    ke.lora(model, rank=2)
    report = ke.cluster(model, 4)
    fit(model, x, y, epochs=2)
    ke.merge(model)
    assert max(distinct(model, report.weights).values()) <= 4


# --- bad use -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"clusters": 1}, r"`clusters` must be an int of at least 2\. Received: 1"),
        ({"clusters": 2.5}, r"`clusters` must be an int of at least 2\. Received: 2.5"),
        (
            {"clusters": 2, "preserve_sparsity": True},
            r"at least 3 \(one is the zero\)\. Received: 2",
        ),
        ({"initialization": "random"}, "`initialization` must be one of .* Received: 'random'"),
        ({"clusters": 4000}, "as many distinct values .* Received: clusters=4000"),
        ({"layers": "nothing"}, "ke.cluster needs at least one weight"),
    ],
)
def test_refuses(arguments, message):
    model = ZOO[0].make()
    with pytest.raises(ValueError, match=message):
        ke.cluster(model, **arguments)
    assert not parametrized_layers(model)


def test_refuses_more_clusters_than_values():
    model = ZOO[0].make()
    ke.cluster(model, 3)
    ke.merge(model)
    with pytest.raises(ValueError, match="which has 3 of them among"):
        ke.cluster(model, 4)


def test_refuses_to_cluster_twice():
    model = ZOO[0].make()
    ke.cluster(model, 4)
    with pytest.raises(ValueError, match=r"one transform of each kind. Received: 'clusters'"):
        ke.cluster(model, 4)


def test_refuses_a_mask_whose_zeros_would_be_one_value_more():
    model = ZOO[0].make()
    ke.prune(model, 0.5)
    with pytest.raises(ValueError, match="one value more than `clusters`"):
        ke.cluster(model, 4)


def test_refuses_a_model_that_is_not_built():
    keras = keras_of("keras")
    with pytest.raises(ValueError, match=r"ke.cluster needs a built model"):
        ke.cluster(keras.Sequential([keras.layers.Dense(3)]))


def test_refuses_another_strategy():
    with mirrored().scope():
        model = FUNCTIONAL[1].make()
    other = tf.distribute.OneDeviceStrategy("CPU:0")
    with other.scope(), pytest.raises(ValueError, match=r"ke.cluster must run under"):
        ke.cluster(model, 4)
