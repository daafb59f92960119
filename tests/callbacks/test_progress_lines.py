"""Lines about the training where output is not a terminal."""

import pytest

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.callbacks import _progress_lines


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(_progress_lines, "time", clock)
    return clock


class Speed:
    last_step = {"examples_per_second": 41.96}  # noqa: RUF012


def train(clock, lines, steps=100, epochs=2, first=0, seconds_per_step=1.0, start=0):
    lines.set_params({"steps": steps, "epochs": epochs})
    lines.on_train_begin()
    for epoch in range(start, epochs):
        lines.on_epoch_begin(epoch)
        for batch in range(first if epoch == start else 0, steps or 100):
            clock.now += seconds_per_step
            lines.on_train_batch_end(batch, {"loss": 1 / (batch + 1), "accuracy": 0.5})
        lines.on_epoch_end(epoch, {"loss": 0.25, "val_macro_f1": 0.75})


def test_a_line_every_so_many_seconds(clock):
    """With nohup, Slurm and Kubernetes there was no line until the end."""
    found = []
    train(clock, ke.callbacks.ProgressLines(30, Speed(), found.append))
    assert found[0] == (
        "train: epoch 1/2, step 1 of 200 (0%), 42.0 examples/s, loss 1.0000, accuracy 0.5000"
    )
    assert found[1].startswith("train: epoch 1/2, step 31 of 200 (16%), 42.0 examples/s")
    assert found[1].endswith("2:49 left")
    assert found[4] == "train: epoch 1/2 done, loss 0.2500, val_macro_f1 0.7500"
    assert found[5].startswith("train: epoch 2/2, step 130 of 200 (65%)")
    assert len(found) == 4 + 1 + 3 + 1


def test_lines_of_a_resumed_run_and_of_unknown_length(clock):
    found = []
    lines = ke.callbacks.ProgressLines(10, write=found.append)
    train(clock, lines, first=50, start=1, seconds_per_step=60.0)
    assert found[0].startswith("train: epoch 2/2, step 151 of 200 (76%)")
    assert found[1].endswith("48:00 left")
    found.clear()
    train(clock, lines, steps=None, epochs=1, seconds_per_step=5.0)
    assert found[1].startswith("train: epoch 1/1, step 3 of the epoch, loss")
    assert "left" not in "".join(found)
    found.clear()
    train(clock, lines, epochs=1, seconds_per_step=3000.0)
    assert found[1].endswith("81:40:00 left")


def test_lines_go_to_standard_error_at_once(clock, capfd):
    train(clock, ke.callbacks.ProgressLines(1000), steps=1, epochs=1)
    out, err = capfd.readouterr()
    assert not out and len(err.splitlines()) == 2


@pytest.mark.parametrize("seconds", [0, -1, True, "30", float("nan")])
def test_seconds_must_be_positive(seconds):
    with pytest.raises(InputError, match="must be positive"):
        ke.callbacks.ProgressLines(seconds)
