"""State of other callbacks, complete runs, and runs that a scheduler or the user stops."""

import json
import os
import signal

import numpy as np
import pytest
from covering import sampled
from fit_helpers import compiled
from resumed_runs import (
    IDS,
    Case,
    Stop,
    Watch,
    assert_equal,
    dataset,
    held_out,
    model_of,
    stopped_copy,
)
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.checkpoint._array_file import check_dtypes
from keras_efficient.checkpoint._callback_list import find_callback_list
from keras_efficient.checkpoint._callback_state import (
    callback_state,
    restore_callback_state,
    state_attributes,
)

LIBRARIES = ("keras", "tf_keras")
libraries = pytest.mark.parametrize("library", LIBRARIES)
#: Without tracing, for tests of what happens between steps.
EAGER = {"run_eagerly": True}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A whole run of Keras 3, whose checkpoints tests copy."""
    return Case("keras", compile=EAGER).whole(tmp_path_factory.mktemp("plain") / "a")


def with_state(library, folder):
    """Callbacks that end a run early, lower the rate or write files, depending on their state."""
    callbacks = keras_of(library).callbacks
    return lambda: [
        callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        callbacks.ModelCheckpoint(
            str(folder / "best.weights.h5"), save_best_only=True, save_weights_only=True
        ),
        ke.callbacks.RunLog(),
        ke.callbacks.AdaptOnPlateau("val_loss", patience=0, batch_factor=2),
    ]


@sampled()
@libraries
def test_a_run_stops_early_at_the_same_epoch(library, tmp_path):
    """Its validation loss rises from the first epoch on."""
    callbacks = with_state(library, tmp_path)
    case = Case(library, callbacks=callbacks, validation=held_out, epochs=9, compile=EAGER)
    whole = case.whole(tmp_path / "whole")
    stopper, saver, log, _ = whole.others
    epochs = len(whole.epochs)
    assert 2 < epochs < 9 and stopper.stopped_epoch == epochs - 1
    assert whole.history["learning_rate_scale"][-1] < 1
    folder = tmp_path / "stopped"
    stopped_copy(whole, folder, (epochs - 1, 3))
    again = case.start(folder)
    assert_equal(again, whole)
    assert again.others[0].stopped_epoch == stopper.stopped_epoch
    assert again.others[0].best == stopper.best
    assert again.others[1].best == saver.best
    assert again.others[2].steps == log.steps and again.others[2].epochs == log.epochs
    # It is complete, although epochs were left.
    done = case.start(folder)
    assert not done.watch.losses
    assert_equal(done, whole)


@pytest.mark.full
@libraries
def test_the_rate_is_lowered_at_the_same_epoch(library, tmp_path):
    adapting = [
        lambda: [ke.callbacks.AdaptOnPlateau("val_loss", patience=0, batch_factor=2)],
        lambda: [ke.callbacks.AdaptOnPlateau("val_accuracy", patience=2, min_delta=1.0)],
    ]
    for index, callbacks in enumerate(adapting):
        case = Case(library, callbacks=callbacks, validation=held_out, epochs=4)
        whole = case.start(tmp_path / f"whole {index}")
        assert whole.history["learning_rate_scale"][-1] < 1
        case.start(tmp_path / str(index), (2, 3))
        assert_equal(case.start(tmp_path / str(index)), whole)


@pytest.mark.parametrize(
    "library, more",
    [
        ("keras", False),
        pytest.param("keras", True, marks=pytest.mark.full),
        pytest.param("tf_keras", True, marks=pytest.mark.full),
    ],
)
def test_a_complete_run_is_not_trained_again(library, more, tmp_path, capsys):
    def ema():
        return [ke.callbacks.EMA(0.8)]

    drawn = []

    def counted():
        def note(*batch):
            import tensorflow as tf

            return tf.py_function(lambda: drawn.append(1) or 0, [], tf.int32), batch

        return dataset().map(note).map(lambda _, batch: batch)

    case = Case(library, callbacks=ema, validation=held_out, data=counted, compile=EAGER)
    whole = case.start(tmp_path / "a")
    drawn.clear()
    again = case.start(tmp_path / "a")
    assert not again.watch.calls and not drawn
    assert_equal(again, whole)
    for a, b in zip(again.others[0].averages, whole.others[0].averages, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert "is complete after 2 epochs" in capsys.readouterr().out
    if more:
        # With more epochs it continues, as if it had been given them at first.
        longer = case.start(tmp_path / "b", epochs=3)
        continued = case.start(tmp_path / "a", epochs=3)
        assert min(continued.watch.losses) == (2, 0)
        assert_equal(continued, longer)
        # With fewer there is nothing to do.
        assert not case.start(tmp_path / "a", epochs=2).watch.losses


def test_data_that_ends_before_the_epochs_do(tmp_path):
    """tf_keras stops then; Keras 3 starts a finite dataset again."""
    data = lambda: dataset().repeat(2)  # noqa: E731
    case = Case("tf_keras", data=data, steps_per_epoch=6, epochs=4, compile=EAGER)
    whole = case.start(tmp_path / "a")
    again = case.start(tmp_path / "a")
    assert (min(whole.watch.losses), max(whole.watch.losses)) == ((0, 0), (1, 5))
    assert not again.watch.losses
    for a, b in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- the state of callbacks, by itself ----------------------------------------------------------


class Stateful(ke.flavor.Callback):
    resumes = ("value", "missing")

    def __init__(self, value):
        self.value = value


def test_plain_data_and_arrays_come_back():
    array = np.arange(3.0)
    value = [1, None, "a", True, {2: array, "b": [np.float32(0.5), float("inf")]}, (1, 2)]
    state, arrays, unsupported = callback_state([Stateful(value), Stateful(1)])
    assert not unsupported
    others = [Stateful(0), Stateful(0)]
    assert restore_callback_state(others, state, arrays) == {}
    assert others[0].value[:4] == value[:4] and others[0].value[5] == [1, 2]
    np.testing.assert_array_equal(others[0].value[4][2], array)
    assert others[0].value[4]["b"] == [0.5, float("inf")] and others[1].value == 1


def test_what_cannot_be_saved_is_said_once(tmp_path):
    case = Case("keras", callbacks=lambda: [Stateful(object())], compile=EAGER)
    with pytest.warns(UserWarning, match=r"Received other values in Stateful.0.value") as caught:
        case.start(tmp_path / "a")
    assert sum("are left out" in str(w.message) for w in caught) == 1


def test_other_callbacks_are_named(plain_run, tmp_path):
    stopped_copy(plain_run, tmp_path / "a", (1, 3))
    case = Case("keras", callbacks=lambda: [Stateful(1)], compile=EAGER)
    with pytest.warns(UserWarning, match=r"and are now \['History.0', 'Stateful.0'\]"):
        case.start(tmp_path / "a")


@sampled()
@libraries
def test_the_list_of_callbacks_is_found(library):
    """Both libraries' `CallbackList` calls `set_model` with itself as `self`, in `callbacks`.

    If it no longer does: find it some other way in `find_callback_list`, for instance from the
    frames of `fit`, where it is the local variable `callbacks`.
    """

    class Finds(ke.flavor.Callback):
        def set_model(self, model):
            self.model, self.found = model, find_callback_list(self)

        def on_train_begin(self, logs=None):
            self.same = self.found.callbacks
            # `fit` calls these from now on.
            self.found.callbacks = [self]

        def on_epoch_begin(self, epoch, logs=None):
            self.begun = True

    finds, other = Finds(), Stateful(1)
    other.on_epoch_begin = None
    model = compiled(library, model_of(library), run_eagerly=True)
    model.fit(*IDS.batch(4), callbacks=[other, finds], verbose=0)
    assert isinstance(finds.found, keras_of(library).callbacks.CallbackList) and finds.begun
    assert finds.same[:2] == [other, finds]


# --- signals -------------------------------------------------------------------------------------


class Terminates(ke.flavor.Callback):
    """Sends the process a signal at the n-th call of a hook."""

    def __init__(self, hook, call, number=signal.SIGTERM):
        self.left = call

        def called(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

        setattr(self, hook, called)

    def _listens(self, mode):
        return True


#: The hook and its call since the last start, and how many of the twelve steps are left to do.
MOMENTS = {
    "within an epoch": ("on_train_batch_end", 3, 9),
    "at an epoch's last batch": ("on_train_batch_end", 6, 6),
    "in validation": ("on_test_batch_end", 2, 6),
    "at an epoch's end": ("on_epoch_end", 1, 6),
    "in the second validation": ("on_test_batch_begin", 2, 0),
    "at the end": ("on_train_end", 1, 0),
}
#: Several of them in one run, the second validation among them, are for `make test-all`.
CHAINS = {
    "keras": ("within an epoch", "in validation", "at the end"),
    "tf_keras": ("at an epoch's last batch", "at an epoch's end", "in the second validation"),
}
STOPPED = [
    pytest.param(library, moments, marks=() if moments == chain[1:2] else pytest.mark.full)
    for library, chain in CHAINS.items()
    for moments in (chain, *((m,) for m in MOMENTS if m != "in the second validation"))
]


@sampled()
@pytest.mark.parametrize("library, moments", STOPPED, ids=str)
def test_a_terminated_run_saves_itself(library, moments, tmp_path, capsys):
    """Nothing is lost but the validation that was going on; EMA's averages are not saved as
    weights, nor a validation's metrics as those of the epoch."""
    kills = []

    def callbacks():
        return [ke.callbacks.EMA(0.8), ke.callbacks.BatchSizeSchedule({0: 4}), *kills]

    resume = {"every_steps": None}
    case = Case(library, callbacks=callbacks, validation=held_out, resume=resume, compile=EAGER)
    whole = case.start(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    for moment in moments:
        hook, call, left = MOMENTS[moment]
        kills[:] = [Terminates(hook, call)]
        with pytest.raises(SystemExit) as exit:
            case.start(tmp_path / "a")
        assert exit.value.code == ke.checkpoint.EXIT_PREEMPTED == 143
        assert signal.getsignal(signal.SIGTERM) is before
        assert "Stopped by SIGTERM" in capsys.readouterr().out
    kills.clear()
    again = case.start(tmp_path / "a")
    assert again.watch.losses.items() <= whole.watch.losses.items()
    assert len(again.watch.losses) == left
    assert_equal(again, whole)


def test_an_interrupt_that_is_listened_for_saves_the_run_first(plain_run, tmp_path, capsys):
    kills = [Terminates("on_train_batch_end", 3, signal.SIGINT)]
    resume = {"every_steps": None, "signals": (signal.SIGINT,)}
    case = Case("keras", callbacks=lambda: kills, resume=resume, compile=EAGER)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        case.start(tmp_path / "a")
    assert signal.getsignal(signal.SIGINT) is before
    assert "Stopped by SIGINT" in capsys.readouterr().out
    kills.clear()
    again = case.start(tmp_path / "a")
    assert min(again.watch.losses) == (0, 3)
    assert_equal(again, plain_run)


def test_a_run_terminated_while_it_draws_again(plain_run, tmp_path):
    """SIGTERM within the replay: what is on the disk stays."""
    stopped_copy(plain_run, tmp_path / "a", (1, 3))
    present = sorted(path.name for path in (tmp_path / "a").iterdir())
    drawn = []

    def terminating():
        import tensorflow as tf

        def note():
            drawn.append(1)
            if len(drawn) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return 0

        def noted(*batch):
            return tf.py_function(note, [], tf.int32), batch

        return dataset().map(noted).map(lambda _, batch: batch)

    with pytest.raises(SystemExit) as exit:
        Case("keras", data=terminating, compile=EAGER).start(tmp_path / "a")
    assert exit.value.code == 143
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == present
    assert_equal(Case("keras", compile=EAGER).start(tmp_path / "a"), plain_run)


def test_a_terminated_run_on_a_full_disk_says_so(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    kills = [Terminates("on_train_batch_end", 3)]
    case = Case("keras", callbacks=lambda: kills, compile=EAGER)
    with (
        pytest.warns(UserWarning, match="could not be saved"),
        pytest.raises(SystemExit, match="could not be written: what was trained") as exit,
    ):
        case.start(tmp_path / "a")
    assert isinstance(exit.value.code, str)


def test_sigterm_after_a_fit_that_failed_is_not_swallowed(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        Case("keras", compile=EAGER).start(tmp_path / "a", (0, 1))
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_next_fit_of_a_stopped_model_is_its_own(tmp_path):
    """Callbacks and averages that a stopped `fit` leaves behind are not used."""
    case = Case("keras", callbacks=lambda: [ke.callbacks.EMA(0.8)], compile=EAGER)
    stopped = case.start(tmp_path / "a", (1, 3))
    model = stopped.model
    history = model.fit(dataset(), validation_data=held_out(), verbose=0).history
    (validated, *_), (loss, *_) = history["val_loss"], model.evaluate(held_out(), verbose=0)
    assert validated == pytest.approx(loss, rel=1e-6)
    assert len(stopped.resume.store.names()) == 2


def test_a_lonely_run_among_workers_saves_itself(monkeypatch, tmp_path):
    """As under `srun`, where every task has a run of its own: the model's strategy decides."""
    workers = ["127.0.0.1:1", "127.0.0.1:2"]
    task = {"type": "worker", "index": 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": workers}, "task": task}))
    model = compiled("keras", model_of("keras"), run_eagerly=True)
    resume = ke.callbacks.Resume(tmp_path / "run")
    model.fit(dataset(), verbose=0, callbacks=[resume])
    assert resume.exists()


class Short(ke.flavor.Callback):
    """Ends `fit` in the middle of an epoch, as TerminateOnNaN does."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            self.model.stop_training = True


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_an_epoch_that_was_cut_short_goes_on_with_more_epochs(library, tmp_path):
    for epochs, callbacks in ((1, [Short()]), (2, [])):
        watch = Watch()
        keras_of(library).utils.set_random_seed(0)
        model = compiled(library, model_of(library), run_eagerly=True)
        callbacks = [watch, *callbacks, ke.callbacks.Resume(tmp_path / "run")]
        model.fit(dataset(), epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    # Six batches in an epoch: three of the first were left.
    assert list(watch.losses) == [(0, 3), (0, 4), (0, 5), *((1, batch) for batch in range(6))]


class Terminated(ke.flavor.Callback):
    def on_train_batch_end(self, batch, logs=None):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_in_a_later_fit_without_it_is_not_swallowed(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        model = compiled("keras", model_of("keras"), run_eagerly=True)
        callbacks = [Watch((0, 1)), ke.callbacks.Resume(tmp_path / "run")]
        with pytest.raises(Stop):
            model.fit(dataset(), verbose=0, callbacks=callbacks)
        model.fit(dataset(), steps_per_epoch=2, verbose=0, callbacks=[Terminated()])
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_no_file_of_arrays_holds_is_left_out(tmp_path):
    class Names(ke.flavor.Callback):
        resumes = ("names", "pairs", "best")
        names, pairs, best = np.array(["a", "b"]), {(1, 2): 3}, 1.0

    model = compiled("keras", model_of("keras"), run_eagerly=True)
    with pytest.warns(UserWarning, match="Names.0.names, Names.0.pairs"):
        model.fit(dataset(), verbose=0, callbacks=[Names(), ke.callbacks.Resume(tmp_path / "run")])


def test_variables_that_no_file_of_arrays_holds_are_refused_at_once():
    specs = {"weights.0": ((2,), np.dtype("complex64"))}
    with pytest.raises(ke.InputError, match="A checkpoint holds variables of these dtypes"):
        check_dtypes(specs)


def test_a_subclass_has_the_state_of_its_base():
    class Mine(keras_of("keras").callbacks.EarlyStopping):
        resumes = ("mine",)

    assert {"mine", "wait", "best"} <= set(state_attributes(Mine()))
