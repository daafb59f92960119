"""A `finetune` that was stopped: what it keeps, what it prints, and how it is resumed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import finetune_arguments, review_rows, versions, write_reviews
from covering import sampled

import keras_efficient as ke
from keras_efficient._errors import VerificationError
from keras_efficient.callbacks._run_log import RunLog

# 54 training reviews in batches of 8.
STEPS = 7


def signal_after(monkeypatch, update, number):
    """Send the process a signal (Ctrl-C: SIGINT) after that many updates."""
    plain = RunLog.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == update:
            os.kill(os.getpid(), number)
        plain(self, batch, logs)

    monkeypatch.setattr(RunLog, "on_train_batch_end", on_train_batch_end)


def state_of(output):
    """The state of the only checkpoint in an output's folder, and the path of that checkpoint."""
    (path,) = (output / ".checkpoint").iterdir()
    return json.loads((path / "state.json").read_text()), path


def fit_raises(monkeypatch, error):
    import keras_hub

    def fit(*args, **kwargs):
        raise error

    monkeypatch.setattr(keras_hub.models.TextClassifier, "fit", fit)


def advised(outcome):
    """Return the words of the command in the message."""
    (line,) = (x for x in outcome.err.splitlines() if x.startswith("  keras-efficient "))
    return shlex.split(line)[1:]


@pytest.mark.full
@pytest.mark.parametrize(
    "library, number, code, exact",
    [
        ("keras", signal.SIGINT, 130, True),
        ("tf_keras", signal.SIGTERM, 143, False),
        ("tf_keras", signal.SIGINT, 130, True),
    ],
    ids=str,
)
def test_a_stopped_run_resumes_at_the_exact_batch(
    library, number, code, exact, finetune, run, reviews, bert, tmp_path, exported, monkeypatch
):
    """With dropout, whose random states are part of the checkpoint.

    The uninterrupted run (`exact`) is the first version in the folder.
    """
    output, options = tmp_path / "with space", {"library": library, "epochs": 2, "seed": 5}
    before = ["1"] if exact else []
    if exact:
        assert finetune(reviews, bert, output, **options).code == 0
    with monkeypatch.context() as patch:
        signal_after(patch, STEPS + 4, number)
        outcome = finetune(reviews, bert, output, **options)
    assert outcome.code == code and versions(output) == before
    assert "Traceback" not in outcome.err and not outcome.out
    assert f"after epoch 1, step 4 is kept in {output / '.checkpoint'}" in outcome.err
    words = advised(outcome)
    assert words == [*finetune_arguments(reviews, bert, output, **options), "--resume"]

    outcome = run(*words)
    assert outcome.code == 0 and "Resuming after epoch 1, step 4" in outcome.err
    # Done: the checkpoint is gone, and the next version is there.
    version = str(len(before) + 1)
    names = [*before, version]
    names += [f"trained-{name}" for name in names]
    assert sorted(path.name for path in output.iterdir()) == names
    assert str(output / version) in outcome.out
    if exact:
        whole, resumed = exported
        assert whole.largest_difference(resumed) <= 1e-6
        assert whole.facts["accuracy"] == resumed.facts["accuracy"]


@pytest.mark.full
def test_a_failed_export_loses_no_training(
    finetune, reviews, bert, tmp_path, exported, monkeypatch
):
    output, options, trained = tmp_path / "out", {"epochs": 1}, []

    def export(model, *args, **kwargs):
        trained.extend(model.get_weights())
        raise VerificationError("'logits' of the SavedModel differs by 0.5")

    with monkeypatch.context() as patch:
        patch.setattr(ke, "export", export)
        outcome = finetune(reviews, bert, output, **options)
    assert outcome.code == 1
    assert "Error: 'logits' of the SavedModel differs by 0.5" in outcome.err
    assert "Traceback" not in outcome.err
    state, last = state_of(output)
    assert (state["epoch"], state["step"]) == (1, 0)

    # From here on, nothing may train.
    signal_after(monkeypatch, STEPS + 1, signal.SIGKILL)

    def crash(model, *args, **kwargs):
        raise RuntimeError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(ke, "export", crash)
        with pytest.raises(RuntimeError, match="went away"):
            finetune(reviews, bert, output, resume=True, **options)
    assert state_of(output) == (state, last)
    dry = finetune(reviews, bert, output, resume=True, dry_run=True, **options)
    assert dry.code == 0 and not exported and last.exists()

    # Other settings.
    others = {"batch_size": (8, 4), "epochs": (1, 3), "learning_rate": (0.01, 0.02)}
    others |= {"seed": (0, 1), "max_length": (32, 16)}
    changed = {**options, **{name: now for name, (_, now) in others.items()}}
    parts = [f"{name}: was {was!r}, now {now!r}" for name, (was, now) in others.items()]
    outcome = finetune(reviews, bert, output, resume=True, **changed)
    outcome.refused("resumes with the settings", *parts)
    data = write_reviews(tmp_path / "other.csv", review_rows(60, seed=1))
    model = shutil.copytree(bert, tmp_path / "other_bert")
    outcome = finetune(data, model, output, resume=True, library="tf_keras", **options)
    outcome.refused("data: was", "model: was", model, "library: was 'keras', now 'tf_keras'")

    # Damage.
    content = (last / "arrays.safetensors").read_bytes()
    (last / "arrays.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="is corrupt"):
        outcome = finetune(reviews, bert, output, resume=True, **options)
    outcome.refused("resumes from a complete checkpoint", last.parent)
    (last / "arrays.safetensors").write_bytes(content)
    assert versions(output) == [] and not exported

    outcome = finetune(reviews, bert, output, resume=True, **options)
    assert outcome.code == 0 and "Resuming after epoch 1, step 0" in outcome.err
    assert "n/a" in outcome.out and versions(output) == ["1"]
    assert not (output / ".checkpoint").exists()
    for a, b in zip(trained, exported[0].weights, strict=True):
        np.testing.assert_array_equal(a, b)


@sampled()
@pytest.mark.parametrize("earlier", [False, True])
def test_interrupt_before_the_first_update(
    earlier, finetune, reviews, bert, tmp_path, exported, monkeypatch
):
    last = tmp_path / "out" / ".checkpoint" / "step-00000007-epoch-0001"
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
@pytest.mark.full
def test_real_signal(run, reviews, bert, tmp_path, exported):
    output = tmp_path / "out"
    words = finetune_arguments(reviews, bert, output, epochs=30)
    command = [str(Path(sys.executable).with_name("keras-efficient")), *words]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list((output / ".checkpoint").glob("step-*/state.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and not out and "Traceback" not in err
    state, _ = state_of(output)
    assert f"after epoch {state['epoch']}, step {state['step']} is kept" in err
    assert 1 <= state["epoch"] < 30
    (advice,) = (line for line in err.splitlines() if line.startswith("  keras-efficient "))
    assert shlex.split(advice) == ["keras-efficient", *words, "--resume"]
    outcome = run(*shlex.split(advice)[1:])
    assert outcome.code == 0 and versions(output) == ["1"]
    assert f"Resuming after epoch {state['epoch']}, step {state['step']}" in outcome.err
