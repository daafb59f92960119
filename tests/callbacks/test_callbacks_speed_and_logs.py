"""Throughput counts exactly; RunLog and Progress show what happened."""

import io

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import compiled, fit
from rich.console import Console
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO, Specimen, _sequential, keras_of

import keras_efficient as ke

BY_NAME = {specimen.name: specimen for specimen in ZOO}
small = pytest.mark.parametrize("library", ["keras", "tf_keras"])
MASKS = ("padding_mask", "attention_mask")


def masked(library, mask):
    """A small model whose inputs have a mask of this name."""
    layers = keras_of(library).layers

    def make():
        inputs = {n: layers.Input((None,), dtype="int32", name=n) for n in ("ids", mask)}
        x = layers.Embedding(VOCABULARY, 8)(inputs["ids"])
        x = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))
        return keras_of(library).Model(inputs, x)

    def features(ids):
        return {"ids": ids, mask: np.ones_like(ids)}

    return Specimen(f"{library}-{mask}", library, make, features)


MASKED = [
    (masked("keras", "padding_mask"), True),
    (masked("tf_keras", "attention_mask"), False),
    *(
        pytest.param(BY_NAME[name], accumulated, marks=pytest.mark.full)
        for name in ("kerashub-bert", "hugging-face-bert")
        for accumulated in (False, True)
    ),
]


#: A batch for the small models.
BATCH = BY_NAME["keras-sequential"].batch


def small_model(library, optimizer=None):
    return compiled(library, _sequential(library)(), optimizer, jit_compile=False)


def batch(specimen, n):
    """A batch whose text i has 1 + i % 6 real tokens; returns also the number of each."""
    x, y = specimen.batch(n)
    lengths = 1 + np.arange(n) % 6
    mask = next(name for name in MASKS if name in x)
    x[mask] = (np.arange(LENGTH) < lengths[:, None]).astype("int32")
    return x, y, lengths


@sampled()
@pytest.mark.parametrize("specimen, accumulated", MASKED, ids=str)
def test_examples_tokens_and_padding_are_counted_exactly(specimen, accumulated):
    model = compiled(specimen.library, specimen.make())
    ke.accumulate(model, 2 if accumulated else None)
    x, y, lengths = batch(specimen, 22)
    speed = ke.callbacks.Throughput()
    history = fit(model, x, y, batch_size=4, callbacks=[speed])
    # Two steps of 4 warm up; 14 examples are left, the last batch has 2.
    assert speed.examples == 14
    assert speed.tokens == lengths[8:].sum()
    assert speed.padding_share == pytest.approx(1 - lengths.sum() / (22 * 6))
    assert history["examples_per_second"][0] == pytest.approx(speed.examples_per_second)
    assert history["tokens_per_second"][0] == pytest.approx(speed.tokens_per_second)
    assert speed.tokens / speed.tokens_per_second == pytest.approx(
        speed.examples / speed.examples_per_second
    )
    times = speed.step_seconds
    assert 0 < times["p50"] <= times["p95"] <= times["max"] < speed.first_step_seconds
    assert speed.peak_memory_bytes > 1e8
    assert "examples/s" in str(speed) and "padding" in str(speed)
    assert ("train_step" in vars(model)) is accumulated


@sampled()
@small
def test_without_a_mask_there_are_no_tokens(library):
    model = small_model(library)
    speed = ke.callbacks.Throughput()
    x, y = BATCH(10)
    history = fit(model, x, y, batch_size=3, epochs=2, callbacks=[speed])
    assert speed.examples == 20 - 6
    assert speed.tokens is speed.padding_share is speed.tokens_per_second is None
    assert "tokens_per_second" not in history
    assert len(history["examples_per_second"]) == 2
    assert "train_step" not in vars(model)
    # The same callback counts the next fit from 0.
    fit(model, x, y, batch_size=5, epochs=2, callbacks=[speed])
    assert speed.examples == 10


@sampled()
@small
def test_run_log_has_every_step_and_epoch(library):
    rate = ke.schedules.warmup_linear(0.1, warmup_steps=2, total_steps=6)
    model = small_model(library, ke.optimizers.AdamW(rate, library=library))
    x, y = BATCH(9)
    speed = ke.callbacks.Throughput()
    log = ke.callbacks.RunLog(speed)
    history = fit(
        model, x, y, batch_size=3, epochs=2, callbacks=[speed, log], validation_data=(x, y)
    )
    assert [entry["step"] for entry in log.steps] == [1, 2, 3, 4, 5, 6]
    assert [entry["learning_rate"] for entry in log.steps] == pytest.approx(
        [float(rate(step)) for step in range(6)]
    )
    assert all(entry["examples_per_second"] > 0 for entry in log.steps)
    assert log.steps[2]["loss"] == pytest.approx(history["loss"][0], rel=1e-5)
    assert [entry["epoch"] for entry in log.epochs] == [1, 2]
    for key in ("loss", "accuracy", "val_loss"):
        assert [entry[key] for entry in log.epochs] == pytest.approx(history[key])


def test_run_log_without_throughput_and_with_a_constant_rate():
    model = small_model("keras")
    log = ke.callbacks.RunLog()
    fit(model, *BATCH(6), batch_size=3, callbacks=[log])
    assert [set(entry) for entry in log.steps] == [{"step", "loss", "learning_rate"}] * 2
    assert log.steps[0]["learning_rate"] == 0.5


@sampled()
@small
def test_progress_draws_fit_and_evaluate(library):
    model = small_model(library)
    screen = io.StringIO()
    shared = ke.callbacks.progress_bar(Console(file=screen, force_terminal=True, width=120))
    x, y = BATCH(9)
    speed = ke.callbacks.Throughput()
    progress = ke.callbacks.Progress(shared, speed)
    with shared:
        fit(
            model,
            x,
            y,
            batch_size=3,
            epochs=2,
            callbacks=[speed, progress],
            validation_data=(x, y),
        )
        model.evaluate(x, y, batch_size=3, verbose=0, callbacks=[progress])
    train, evaluate = shared.tasks
    assert (train.description, train.completed, train.total) == ("train 2/2", 6, 6)
    assert (evaluate.description, evaluate.completed) == ("evaluate", 3)
    assert train.finished_time is not None or train.stop_time is not None
    drawn = screen.getvalue()
    for text in ("train 2/2", "evaluate", "loss", "accuracy", "ex/s"):
        assert text in drawn


def test_progress_opens_and_closes_a_display_of_its_own(monkeypatch):
    screen = io.StringIO()
    made = ke.callbacks.progress_bar(Console(file=screen, force_terminal=True, width=120))
    monkeypatch.setattr("keras_efficient.callbacks._progress.progress_bar", lambda: made)
    model = small_model("keras")
    data = tf.data.Dataset.from_tensor_slices(BATCH(6)).batch(3)
    model.fit(data, verbose=0, callbacks=[ke.callbacks.Progress()])
    assert not made.live.is_started
    assert "train 1/1" in screen.getvalue()
