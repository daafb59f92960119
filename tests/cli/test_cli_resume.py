"""A run that was stopped: what it keeps, what it says, and how it goes on."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from command_line import finetune_arguments, review_rows, versions, write_reviews

import keras_efficient as ke
from keras_efficient._errors import VerificationError
from keras_efficient.callbacks._run_log import RunLog

# 54 training reviews in batches of 8.
STEPS = 7


def interrupt_after(monkeypatch, update):
    """Ctrl-C after that many updates, before the checkpoint has counted the last one."""
    plain = RunLog.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == update:
            raise KeyboardInterrupt
        plain(self, batch, logs)

    monkeypatch.setattr(RunLog, "on_train_batch_end", on_train_batch_end)


def fit_raises(monkeypatch, error):
    import keras_hub

    def fit(*args, **kwargs):
        raise error

    monkeypatch.setattr(keras_hub.models.TextClassifier, "fit", fit)


def advised(outcome):
    """The words of the command that the message advises."""
    (line,) = (x for x in outcome.err.splitlines() if x.startswith("  keras-efficient "))
    return shlex.split(line)[1:]


@pytest.mark.parametrize(
    ("library", "model"), [("keras", "bert"), ("tf_keras", "bert_without_dropout")]
)
def test_interrupted_run_goes_on_as_if_nothing_had_been(
    library, model, request, finetune, run, reviews, tmp_path, exported, monkeypatch
):
    """With dropout in Keras 3, whose seeds are part of the checkpoint.

    tf_keras draws dropout from operations whose counters cannot be saved: there the same holds
    for the batches and the optimizer, and with dropout the draws after a resume are new ones.
    """
    model = request.getfixturevalue(model)
    options = {"library": library, "epochs": 3, "seed": 5}
    assert finetune(reviews, model, tmp_path / "whole", **options).code == 0
    output = tmp_path / "with space"
    with monkeypatch.context() as patch:
        interrupt_after(patch, STEPS + 4)
        outcome = finetune(reviews, model, output, **options)
    assert outcome.code == 130 and len(exported) == 1 and versions(output) == []
    assert "Traceback" not in outcome.err
    assert f"after epoch 1, step 4 is kept in {output / '.checkpoint'}" in outcome.err
    words = advised(outcome)
    assert words == [*finetune_arguments(reviews, model, output, **options), "--resume"]

    outcome = run(*words)
    assert outcome.code == 0 and "Resuming after epoch 1, step 4" in outcome.err
    # Done: the checkpoint is gone.
    assert [path.name for path in output.iterdir()] == ["1"]
    whole, resumed = exported
    assert whole.largest_difference(resumed) <= 1e-6
    assert whole.facts["accuracy"] == resumed.facts["accuracy"]


def test_refused_export_exits_with_1(finetune, reviews, bert, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def export(*args, **kwargs):
        raise VerificationError("'logits' of the SavedModel differs by 0.5")

    monkeypatch.setattr(ke, "export", export)
    outcome = finetune(reviews, bert, output, epochs=1)
    assert outcome.code == 1
    assert "Error: 'logits' of the SavedModel differs by 0.5" in outcome.err
    assert "Traceback" not in outcome.err
    assert (output / ".checkpoint" / "last").exists()


def test_crash_in_export_loses_no_training(
    finetune, reviews, bert, tmp_path, exported, monkeypatch
):
    output, options, trained = tmp_path / "out", {"epochs": 2}, []

    def export(model, *args, **kwargs):
        trained.extend(model.get_weights())
        raise RuntimeError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(ke, "export", export)
        with pytest.raises(RuntimeError, match="went away"):
            finetune(reviews, bert, output, **options)
    last = output / ".checkpoint" / "last"
    state = json.loads((last / "state.json").read_text())
    assert (state["epoch"], state["step"]) == (2, 0)

    # From here on, nothing may train.
    fit_raises(monkeypatch, AssertionError("trained again"))
    dry = finetune(reviews, bert, output, resume=True, dry_run=True, **options)
    assert dry.code == 0 and not exported and last.exists()

    # Other settings.
    others = {"batch_size": (8, 4), "epochs": (2, 3), "learning_rate": (0.01, 0.02)}
    others |= {"seed": (0, 1), "max_length": (32, 16), "library": ("keras", "tf_keras")}
    for name, (was, now) in others.items():
        outcome = finetune(reviews, bert, output, resume=True, **{**options, name: now})
        outcome.refused("resumes with the settings", f"{name}: was {was!r}, now {now!r}")
    data = write_reviews(tmp_path / "other.csv", review_rows(60, seed=1))
    finetune(data, bert, output, resume=True, **options).refused("data: was")
    model = shutil.copytree(bert, tmp_path / "other_bert")
    finetune(reviews, model, output, resume=True, **options).refused("model: was", model)

    # Damage.
    for name in ("state.json", "variables.index", "variables.data-00000-of-00001"):
        content = (last / name).read_bytes()
        (last / name).write_bytes(content[: len(content) // 2])
        outcome = finetune(reviews, bert, output, resume=True, **options)
        outcome.refused("must fit the model and be whole", last)
        (last / name).write_bytes(content)
    assert versions(output) == [] and not exported

    outcome = finetune(reviews, bert, output, resume=True, **options)
    assert outcome.code == 0 and "Resuming after epoch 2, step 0" in outcome.err
    assert "n/a" in outcome.out and versions(output) == ["1"]
    assert not (output / ".checkpoint").exists()
    for a, b in zip(trained, exported[0].weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("earlier", [False, True])
def test_interrupt_before_the_first_update(
    earlier, finetune, reviews, bert, tmp_path, exported, monkeypatch
):
    last = tmp_path / "out" / ".checkpoint" / "last"
    if earlier:
        last.mkdir(parents=True)
        (last / "state.json").write_text("an earlier run's")
    fit_raises(monkeypatch, KeyboardInterrupt())
    outcome = finetune(reviews, bert, tmp_path / "out")
    assert outcome.code == 130 and not exported
    assert "nothing to resume" in outcome.err and "--resume" not in outcome.err
    assert last.exists() == earlier
    assert not earlier or (last / "state.json").read_text() == "an earlier run's"


def test_interrupt_while_loading(finetune, reviews, bert, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ke.models, "load", load)
    outcome = finetune(reviews, bert, tmp_path / "out")
    assert outcome.code == 130 and "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_signal(run, reviews, bert, tmp_path, exported):
    output = tmp_path / "out"
    words = finetune_arguments(reviews, bert, output, epochs=30)
    command = [str(Path(sys.executable).with_name("keras-efficient")), *words]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (output / ".checkpoint" / "last" / "state.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and not out and "Traceback" not in err
    state = json.loads((output / ".checkpoint" / "last" / "state.json").read_text())
    assert f"after epoch {state['epoch']}, step {state['step']} is kept" in err
    assert 1 <= state["epoch"] < 30
    (advice,) = (line for line in err.splitlines() if line.startswith("  keras-efficient "))
    assert shlex.split(advice) == ["keras-efficient", *words, "--resume"]
    outcome = run(*shlex.split(advice)[1:])
    assert outcome.code == 0 and versions(output) == ["1"]
    assert f"Resuming after epoch {state['epoch']}, step {state['step']}" in outcome.err


@pytest.mark.parametrize("killed_at", [0, 1])
def test_a_save_killed_at_any_rename_leaves_a_whole_checkpoint(killed_at, tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")

    def checkpoint():
        new = ke.callbacks.Checkpoint(tmp_path / "run")
        new.set_model(model)
        return new

    checkpoint().save(1, 0)
    rename, left = os.rename, [killed_at]

    def killed(source, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(source, target)

    # Twice: the second save finds what the first left.
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoint().save(2, 0)
        found = checkpoint()
        found.restore(model)
        assert (found.epoch, found.step) == (1, 0)
    checkpoint().save(3, 0)
    found = checkpoint()
    found.restore(model)
    assert found.epoch == 3
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last"]
