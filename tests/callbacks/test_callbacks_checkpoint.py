"""A resumed run is the uninterrupted run."""

import os

import numpy as np
import pytest
import tensorflow as tf
from fit_helpers import assert_same, compiled
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO, keras_of

import keras_efficient as ke

BY_NAME = {specimen.name: specimen for specimen in ZOO}


def dropping():
    """A Keras 3 model with dropout, whose seeds are part of the checkpoint."""
    keras = keras_of("keras")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, 8),
            layers.GlobalAveragePooling1D(),
            layers.Dropout(0.5, seed=7),
            layers.Dense(CLASSES),
        ]
    )


MODELS = {
    "keras": ("keras", BY_NAME["keras-sequential"].make),
    "keras-dropout": ("keras", dropping),
    "tf_keras": ("tf_keras", BY_NAME["tf_keras-functional"].make),
}


def model_of(name):
    library, make = MODELS[name]
    rate = ke.schedules.warmup_cosine(0.05, warmup_steps=2, total_steps=12)
    return compiled(library, make(), ke.optimizers.AdamW(rate, library=library))


def data():
    return tf.data.Dataset.from_tensor_slices(BY_NAME["keras-sequential"].batch(12)).batch(3)


class Crash(ke.flavor.Callback):
    """Fails at the given update of the given epoch."""

    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole():
    models = {}
    for name in MODELS:
        models[name] = model_of(name)
        models[name].fit(data(), epochs=3, verbose=0)
    return models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("every_steps", [None, 2])
def test_resumed_is_uninterrupted(name, every_steps, whole, tmp_path):
    first = ke.callbacks.Checkpoint(tmp_path, every_steps=every_steps)
    assert not first.exists()
    with pytest.raises(KeyboardInterrupt):
        model_of(name).fit(data(), epochs=3, verbose=0, callbacks=[first, Crash(1, 2)])

    model = model_of(name)
    checkpoint = ke.callbacks.Checkpoint(tmp_path, every_steps=every_steps)
    assert checkpoint.exists()
    checkpoint.restore(model)
    assert (checkpoint.epoch, checkpoint.step) == (1, every_steps or 0)
    assert int(model.optimizer.iterations) == 4 + (every_steps or 0)
    epoch = checkpoint.epoch
    if checkpoint.step:
        rest = data().skip(checkpoint.step)
        model.fit(rest, initial_epoch=1, epochs=2, verbose=0, callbacks=[checkpoint])
        assert (checkpoint.epoch, checkpoint.step) == (2, 0)
        epoch = 2
    model.fit(data(), initial_epoch=epoch, epochs=3, verbose=0, callbacks=[checkpoint])
    assert_same(model, whole[name], 0)
    assert checkpoint.epoch == 3
    checkpoint.remove()
    assert not tmp_path.exists()


def saved(tmp_path, **kwargs):
    checkpoint = ke.callbacks.Checkpoint(tmp_path, **kwargs)
    model = model_of("keras")
    model.fit(data(), verbose=0, callbacks=[checkpoint])
    return checkpoint, model


def test_a_crash_between_the_two_renames_keeps_the_last_save(tmp_path, monkeypatch):
    checkpoint, model = saved(tmp_path)
    before = model.get_weights()
    model.fit(data(), verbose=0)
    rename = os.rename

    def once(source, target):
        rename(source, target)
        raise OSError("power cut")

    monkeypatch.setattr("os.rename", once)
    with pytest.raises(OSError, match="power cut"):
        checkpoint.save(2, 0)
    monkeypatch.undo()
    assert not (tmp_path / "last").exists()

    again = ke.callbacks.Checkpoint(tmp_path)
    other = model_of("keras")
    again.restore(other)
    assert again.epoch == 1
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # And the next save works.
    again.model = other
    again.save(2, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


@pytest.mark.parametrize("half", [True, False])
def test_a_damaged_checkpoint_is_refused(tmp_path, half):
    saved(tmp_path)
    file = next((tmp_path / "last").glob("variables.data*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if half else 0])
    with pytest.raises(ke.InputError, match="must fit the model and be whole"):
        ke.callbacks.Checkpoint(tmp_path).restore(model_of("keras"))


def test_a_damaged_state_is_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / "last" / "state.json").write_text('{"epoch": 1')
    with pytest.raises(ke.InputError, match="must fit the model and be whole"):
        ke.callbacks.Checkpoint(tmp_path).restore(model_of("keras"))


def test_another_models_checkpoint_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ke.InputError, match="must fit the model and be whole"):
        ke.callbacks.Checkpoint(tmp_path).restore(model_of("tf_keras"))


def test_other_settings_are_refused(tmp_path):
    saved(tmp_path, settings={"batch_size": 3, "data": "a"})
    other = ke.callbacks.Checkpoint(tmp_path, settings={"batch_size": 4, "data": "a"})
    with pytest.raises(ke.InputError, match="Received: batch_size: was 3, now 4"):
        other.restore(model_of("keras"))


def test_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ke.InputError, match="There must be a checkpoint to resume"):
        ke.callbacks.Checkpoint(tmp_path).restore(model_of("keras"))
