"""Models that TF-MOT wrapped, in its own way, train with our step and callbacks, and export."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled

import keras_efficient as ke
from keras_efficient.compression._tf_mot import tf_mot

sys.path.append(str(Path(__file__).parents[1] / "callbacks"))

from resumed_runs import Case, assert_goes_on


def functional(library="tf_keras"):
    import tf_keras

    x = tf_keras.Input((8,))
    hidden = tf_keras.layers.Dense(8, activation="relu")(x)
    return tf_keras.Model(x, tf_keras.layers.Dense(3)(hidden))


def data(n=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8)).astype("float32"), (np.arange(n) % 3).astype("int32")


def pruned(library="tf_keras"):
    schedule = tf_mot("sparsity.keras.pruning_schedule").PolynomialDecay(0.0, 0.5, 0, 8, 3, 1)
    return tf_mot("sparsity.keras.prune").prune_low_magnitude(functional(), schedule)


def quantized(library="tf_keras"):
    return tf_mot("quantization.keras.quantize").quantize_model(functional())


def clustered(library="tf_keras"):
    initial = tf_mot("clustering.keras.cluster_config").CentroidInitialization.LINEAR
    cluster = tf_mot("clustering.keras.cluster").cluster_weights
    return cluster(functional(), number_of_clusters=4, cluster_centroids_init=initial)


WAYS = {
    "prune": (
        pruned,
        lambda: [tf_mot("sparsity.keras.pruning_callbacks").UpdatePruningStep()],
        lambda model: tf_mot("sparsity.keras.prune").strip_pruning(model),
    ),
    "quantize": (quantized, list, None),
    "cluster": (
        clustered,
        list,
        lambda model: tf_mot("clustering.keras.cluster").strip_clustering(model),
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_tf_mots_models_train_with_our_step_and_export(way, tmp_path):
    import tf_keras

    make, callbacks, strip = WAYS[way]
    model = make()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(ke.optimizers.AdamW(0.01, library="tf_keras"), loss, jit_compile=False)
    ke.accumulate(model, microbatches=2)
    x, y = data()
    log = ke.callbacks.RunLog()
    ours = [ke.callbacks.Resume(tmp_path / "run"), ke.callbacks.Throughput(), log]
    history = model.fit(x, y, batch_size=4, epochs=6, verbose=0, callbacks=[*ours, *callbacks()])
    assert history.history["loss"][-1] < history.history["loss"][0]
    for name, exported in [("as it is", model), ("stripped", strip and strip(model))]:
        if not exported:
            continue
        outputs = np.asarray(exported(x[:4]))
        ke.export(exported, str(tmp_path / name), sample=x[:4])
        folder = next((tmp_path / name).rglob("saved_model.pb")).parent
        served = tf.saved_model.load(str(folder)).signatures["serving_default"]
        (inputs,) = served.structured_input_signature[1]
        (answer,) = served(**{inputs: tf.constant(x[:4])}).values()
        np.testing.assert_allclose(answer, outputs, atol=1e-5)
    if way == "prune":
        kernels = [w for w in exported.get_weights() if w.ndim == 2]
        assert [np.count_nonzero(w) for w in kernels] == [32, 12]
    if way == "cluster":
        kernels = [w for w in exported.get_weights() if w.ndim == 2]
        assert all(len(np.unique(w)) <= 4 for w in kernels)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("way", ["prune", "quantize"])
def test_tf_mots_models_resume_to_the_last_bit(way, tmp_path):
    make, callbacks, _ = WAYS[way]

    def batches():
        return tf.data.Dataset.from_tensor_slices(data(23)).shuffle(23).batch(4)

    case = Case("tf_keras", model=make, callbacks=callbacks, data=batches)
    whole = case.start(tmp_path / "whole")
    assert_goes_on(case, tmp_path / "again", (1, 2), whole)


def test_an_average_of_the_weights_goes_with_tf_mots_masks():
    """The masks are no floats that train: the average leaves them alone."""
    import tf_keras

    model, x, y = pruned(), *data()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(0.01), loss, jit_compile=False)
    average = ke.callbacks.EMA(0.5)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[average, *WAYS["prune"][1]()])
    masks = [layer.pruning_vars[0][1].numpy() for layer in model.layers[1:]]
    with average.averaged():
        for layer, mask in zip(model.layers[1:], masks, strict=True):
            np.testing.assert_array_equal(layer.pruning_vars[0][1].numpy(), mask)
            assert set(np.unique(mask)) == {0.0, 1.0}
