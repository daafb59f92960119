"""Files of `Resume`, and what it does when it cannot write them or finds others."""

import errno
import json
import os
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import safetensors
import tensorflow as tf
from covering import sampled
from fit_helpers import compiled
from resumed_runs import IDS, Case, assert_equal, dataset, model_of, stopped_copy

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.checkpoint import _callback_list as callback_list, _store as store
from keras_efficient.checkpoint._compile_settings import compile_settings, warn_of_changes
from keras_efficient.checkpoint._replica_values import redistribute

#: Without tracing, which does not matter to files.
EAGER = {"run_eagerly": True}
CASE = Case("keras", compile=EAGER)


def case(library="keras", **kwargs):
    return Case(library, **{"compile": EAGER, **kwargs})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two epochs of six steps that kept all of its saves."""
    return CASE.whole(tmp_path_factory.mktemp("whole") / "a")


@pytest.fixture(scope="module")
def settled(whole, tmp_path_factory):
    """The folder that such a run leaves with the default `keep`."""
    folder = tmp_path_factory.mktemp("settled") / "a"
    stopped_copy(whole, folder, (2, 0))
    return folder


@pytest.fixture
def stopped(whole, tmp_path):
    """The folder of a run that was killed at its 12th step, with saves after 8 and 10."""
    folder = tmp_path / "a"
    stopped_copy(whole, folder, (1, 5))
    return folder


def names(folder):
    """Without the lock, which a run that ended by an exception holds until its process ends."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_what_is_kept(settled, stopped, tmp_path):
    assert names(settled) == ["step-00000012", "step-00000012-epoch-0002"]
    assert names(stopped) == ["step-00000008", "step-00000010"]
    CASE.start(tmp_path / "b", (1, 3))
    assert names(tmp_path / "b") == ["step-00000006-epoch-0001", "step-00000008"]
    one = case(resume={"keep": 1, "every_steps": None})
    one.start(tmp_path / "c", (1, 3))
    assert names(tmp_path / "c") == ["step-00000006-epoch-0001"]
    three = case(resume={"keep": 3, "every_steps": 5})
    three.start(tmp_path / "d")
    assert names(tmp_path / "d") == [
        "step-00000006-epoch-0001",
        "step-00000010",
        "step-00000012-epoch-0002",
    ]


def test_the_files_are_plain(stopped):
    state = json.loads((stopped / "step-00000010/state.json").read_text())
    assert (state["epoch"], state["step"], state["total"]) == (1, 4, 10)
    assert state["versions"]["tensorflow"] == tf.__version__
    with safetensors.safe_open(stopped / "step-00000010/arrays.safetensors", "np") as file:
        assert file.get_tensor("weights.0").shape == (50, 8)


def test_half_precision_is_kept(tmp_path):
    runs = store.CheckpointStore(tmp_path)
    dtypes = ("bfloat16", "float16", "float64", "int8", "uint64", "bool")
    arrays = {n: np.ones((2, 3), tf.as_dtype(n).as_numpy_dtype) for n in dtypes}
    arrays |= {"empty": np.zeros((0, 2), "float32"), "scalar": np.array(3, "int64")}
    specs = {name: (a.shape, a.dtype) for name, a in arrays.items()}
    runs.write("step-00000001", specs, arrays.__getitem__, {"inf": float("inf"), "ints": {2: 1}})
    loaded = runs.load("step-00000001")
    assert loaded.state["inf"] == float("inf")
    for name, array in arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array)


DAMAGE = {
    "arrays cut": lambda path: cut(path / "arrays.safetensors", 0.5),
    "arrays cut by one": lambda path: cut(path / "arrays.safetensors", -1),
    "arrays empty": lambda path: cut(path / "arrays.safetensors", 0),
    "a byte of the arrays": lambda path: flip(path / "arrays.safetensors"),
    "no arrays": lambda path: (path / "arrays.safetensors").unlink(),
    "a byte of the state": lambda path: flip(path / "state.json"),
    "state cut": lambda path: cut(path / "state.json", 0.9),
    "state empty": lambda path: cut(path / "state.json", 0),
    "state of nothing": lambda path: (path / "state.json").write_text("[]"),
    "no state": lambda path: (path / "state.json").unlink(),
}


def cut(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: share if share < 0 else int(len(data) * share)])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_corrupt_save_is_found(how, settled, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(settled, folder)
    DAMAGE[how](folder / "step-00000012")
    with pytest.raises(store.CorruptCheckpointError):
        store.CheckpointStore(folder).load("step-00000012")


def test_the_save_before_a_corrupt_one_is_used(whole, settled, stopped):
    flip(stopped / "step-00000010/arrays.safetensors")
    with pytest.warns(UserWarning, match=r"step-00000010' is corrupt .* skipped"):
        again = CASE.start(stopped)
    assert min(again.watch.losses) == (1, 2)
    assert_equal(again, whole)
    assert names(stopped) == names(settled)


def test_a_run_without_a_complete_save_is_refused(stopped):
    for name in names(stopped):
        DAMAGE["no arrays"](stopped / name)
    with (
        pytest.warns(UserWarning, match="is corrupt"),
        pytest.raises(InputError, match="resumes from a complete checkpoint"),
    ):
        CASE.start(stopped)


def test_what_killed_writers_leave_is_removed(stopped, whole, settled):
    (stopped / ".partial-step-00000012-99").mkdir()
    (stopped / ".partial-step-00000012-99/arrays.safetensors").write_text("half")
    assert_equal(CASE.start(stopped), whole)
    assert names(stopped) == names(settled)


def test_a_run_that_overwrites_replaces_earlier_saves_at_its_first(stopped, whole):
    before = names(stopped)
    new = case(resume={"overwrite": True, "every_steps": 4})
    new.start(stopped, (0, 2))
    assert names(stopped) == before
    run = new.start(stopped, (0, 4))
    assert min(run.watch.losses) == (0, 0) and names(stopped) == ["step-00000004"]
    assert_equal(CASE.start(stopped), whole)


def test_the_position_to_resume_is_known_before_fit(stopped, tmp_path):
    resume = ke.callbacks.Resume(stopped)
    assert resume.load_position() and (resume.epoch, resume.step) == (1, 4)
    assert not ke.callbacks.Resume(tmp_path / "other").load_position()
    with pytest.raises(InputError, match=r"started with. Received: rate: was None, now 2"):
        ke.callbacks.Resume(stopped, settings={"rate": 2}).load_position()


# --- disks that are full -------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("place", ["fsync", "rename", "mkdir"])
def test_training_goes_on_if_the_disk_is_full(place, whole, tmp_path, monkeypatch):
    real, calls = getattr(os, place), []

    def full(path, *args, **kwargs):
        # The lock, the first save and the last ones work.
        calls.append(path)
        mine = place == "fsync" or ".partial" in str(path)
        if mine and 5 < len(calls) < 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, place, full)
    with pytest.warns(UserWarning, match=r"could not be saved .* No space left") as caught:
        run = CASE.start(tmp_path / "a")
    assert sum("could not be saved" in str(w.message) for w in caught) == 1
    assert_equal(run, whole)
    assert not list((tmp_path / "a").glob(".partial*"))
    for name in names(tmp_path / "a"):
        store.CheckpointStore(tmp_path / "a").load(name)


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 64 kB: room for a few saves of 14 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small filesystem cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(small_disk, whole):
    folder = small_disk / "a"

    class Filler(ke.flavor.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                free = shutil.disk_usage(small_disk).free
                (small_disk / "ballast").write_bytes(bytes(free - 8192))

    with pytest.warns(UserWarning, match="could not be saved"):
        case(callbacks=lambda: [Filler()]).start(folder, (1, 5))
    assert names(folder) == ["step-00000004", "step-00000006"]
    (small_disk / "ballast").unlink()
    again = CASE.start(folder)
    assert min(again.watch.losses) == (1, 0)
    assert_equal(again, whole)


def test_too_small_a_disk_is_refused_before_training(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"keeps 2 checkpoints needs .* MB of free disk"):
        CASE.start(tmp_path / "a")


# --- what is refused -----------------------------------------------------------------------------


def test_folders_that_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"saved in a folder. Received: .* is a file"):
        CASE.start(tmp_path / "file/a")
    with pytest.raises(InputError, match=r"in a folder of its own. Received: .* holds 'file'"):
        CASE.start(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="folder must be writable"):
        CASE.start(tmp_path / "a")


@pytest.mark.parametrize("kwargs", [{"every_steps": 0}, {"every_steps": True}, {"keep": 0}])
def test_numbers_out_of_range(kwargs):
    with pytest.raises(ValueError, match=r"must be an int >= 1. Received"):
        ke.callbacks.Resume("a", **kwargs)


def test_settings_that_are_not_json():
    with pytest.raises(ValueError, match="`settings` must be a dict of numbers, strings"):
        ke.callbacks.Resume("a", settings={"data": object()})


def test_other_settings_are_refused(tmp_path):
    case(resume={"settings": {"rate": 1, "shape": (1, 2)}}).start(tmp_path / "a", (0, 3))
    with pytest.raises(InputError, match=r"started with. Received: rate: was 1, now 2"):
        case(resume={"settings": {"rate": 2, "shape": (1, 2)}}).start(tmp_path / "a")


def other_model(library):
    model = model_of(library)
    keras = ke.flavor.of(model).keras
    return keras.Sequential([*model.layers, keras.layers.Dense(3)])


def test_another_model_is_refused(stopped):
    with pytest.raises(InputError, match=r"was started with. Received: .* is missing"):
        case(model=other_model).start(stopped)


def test_another_size_is_refused(stopped, monkeypatch):
    monkeypatch.setattr("resumed_runs.VOCABULARY", 60)
    with pytest.raises(InputError, match=r"was float32\[50, 8\], now float32\[60, 8\]"):
        CASE.start(stopped)


def test_another_step_is_refused(stopped):
    with pytest.raises(InputError, match=r"step.skipped is missing"):
        case(caller=lambda model: ke.accumulate(model, 2)).start(stopped)


def unseeded():
    data = tf.data.Dataset.from_tensor_slices(IDS.batch(23))
    return data.shuffle(23, seed=int.from_bytes(os.urandom(4), "little")).batch(4)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_other_data_is_refused(library, tmp_path):
    case(library, data=unseeded).start(tmp_path / "a", (1, 3))
    with pytest.raises(InputError, match=r"must see the data .* Seed the shuffling"):
        case(library, data=unseeded).start(tmp_path / "a")
    trusting = case(library, data=unseeded, resume={"check_data": False})
    assert min(trusting.start(tmp_path / "a").watch.losses) == (1, 2)


def test_less_data_is_refused(stopped):
    with pytest.raises(InputError, match=r"must see the data .* ended at step 2 of epoch 2"):
        case(data=lambda: dataset(8)).start(stopped)


def test_another_first_epoch_is_refused(stopped):
    with pytest.raises(InputError, match="with the `initial_epoch` it was started with"):
        CASE.start(stopped, initial_epoch=1)


def test_other_steps_per_call_are_refused(stopped):
    with pytest.raises(InputError, match="with the `steps_per_execution` it was started with"):
        Case("keras", compile={"steps_per_execution": 3}).start(stopped)


def test_another_format_is_refused(stopped, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 2)
    with pytest.raises(InputError, match="in the format that this version reads"):
        CASE.start(stopped)


def test_a_fit_without_a_list_is_refused(stopped, monkeypatch):
    monkeypatch.setattr(callback_list, "find_callback_list", lambda callback: None)
    with pytest.raises(InputError, match="must find the list in which `fit` keeps its callbacks"):
        CASE.start(stopped)


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_only_fit_resumes(method, tmp_path):
    model = compiled("keras", model_of("keras"))
    resume = ke.callbacks.Resume(tmp_path / "a")
    with pytest.raises(InputError, match="Resume is a callback of `fit`"):
        getattr(model, method)(IDS.batch(4)[0], callbacks=[resume], verbose=0)
    assert "train_step" not in vars(model)


def test_a_model_is_left_as_it_was(whole):
    model = whole.model
    assert not {"evaluate", "train_step", "make_train_function"} & set(vars(model))


# --- another number of replicas ------------------------------------------------------------------


def in_order():
    # A strategy starts iterators of its own, and each start shuffles again.
    return tf.data.Dataset.from_tensor_slices(IDS.batch(23)).batch(4)


@sampled()
@pytest.mark.parametrize("replicas", [(1, 2), (2, 1)])
def test_another_number_of_replicas(replicas, tmp_path):
    options = {"model": lambda library: model_of(library, 0), "data": in_order}
    before, after = (Case("keras", replicas=n, **options) for n in replicas)
    whole = before.whole(tmp_path / "whole")
    stopped_copy(whole, tmp_path / "a", (1, 3))
    message = f"saved with {replicas[0]} replicas and continues with {replicas[1]}"
    with pytest.warns(UserWarning, match=message):
        again = after.start(tmp_path / "a")
    # Running statistics are each replica's own, so losses are nearly equal.
    assert again.history.keys() == whole.history.keys()
    assert again.history["accuracy"][0] == whole.history["accuracy"][0]


def test_sums_are_redistributed():
    with tf.distribute.get_strategy().scope():
        total = tf.Variable(
            0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    parts = redistribute(total, np.array([5, 6]), 3, copies=False)
    assert parts.sum() == 11 and parts.shape == (3,)
    assert redistribute(total, np.array([5, 5]), 3, copies=True).tolist() == [5, 5, 5]


# --- saves of other runs, and of weights that are not finite -------------------------------------


class Calls(ke.flavor.Callback):
    """Calls a function of the model after a step, the first of which is 1."""

    def __init__(self, step, function):
        self.left, self.function = step, function

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.function(self.model)


def test_a_run_never_deletes_the_saves_of_another(whole, tmp_path):
    """As of a process that had taken the lock of a suspended one."""
    other = "step-00000006"
    copy = lambda model: shutil.copytree(  # noqa: E731
        whole.resume.store.directory / other, tmp_path / "a" / other
    )
    one = case(callbacks=lambda: [Calls(2, copy)], resume={"keep": 1, "every_steps": 5})
    one.start(tmp_path / "a")
    assert names(tmp_path / "a") == [other, "step-00000012-epoch-0002"]


def test_a_step_that_another_process_saved_is_an_error(whole, tmp_path):
    """Which Orbax calls StepAlreadyExistsError."""
    other = "step-00000006"
    copy = lambda model: shutil.copytree(  # noqa: E731
        whole.resume.store.directory / other, tmp_path / "a" / other
    )
    with pytest.raises(InputError, match=r"saved once. Received: .*step-00000006', which exists"):
        case(callbacks=lambda: [Calls(2, copy)]).start(tmp_path / "a")


def test_a_run_whose_lock_was_taken_saves_nothing_more(tmp_path):
    remove = lambda model: (tmp_path / "a/.lock").unlink()  # noqa: E731
    with pytest.raises(InputError, match="used by one process at a time"):
        case(callbacks=lambda: [Calls(3, remove)]).start(tmp_path / "a")
    assert names(tmp_path / "a") == ["step-00000002"]


def spoil(value):
    """Set an entry of the last bias."""

    def function(model):
        bias = model.trainable_variables[-1]
        array = np.array(bias)
        array[0] = value
        bias.assign(array)

    return function


@sampled()
@pytest.mark.parametrize("library, value", [("keras", np.nan), ("tf_keras", np.inf)])
def test_the_last_finite_save_is_kept_and_resumed(library, value, tmp_path):
    runs = case(library, callbacks=lambda: [Calls(7, spoil(value))])
    with pytest.warns(UserWarning, match="NaN or infinite after 8 steps: .* step-00000006-epoch"):
        runs.start(tmp_path / "a")
    finite = "step-00000006-epoch-0001"
    assert names(tmp_path / "a") == [finite, "step-00000012", "step-00000012-epoch-0002"]
    with pytest.warns(UserWarning, match=f"The run resumes from {finite}, before that"):
        again = case(library).start(tmp_path / "a")
    assert min(again.watch.losses) == (1, 0)
    assert names(tmp_path / "a") == ["step-00000012", "step-00000012-epoch-0002"]
    assert all(np.isfinite(w).all() for w in again.model.get_weights())


def test_a_run_that_was_never_finite_resumes_nevertheless(tmp_path):
    runs = case(callbacks=lambda: [Calls(1, spoil(np.nan))])
    with pytest.warns(UserWarning, match="NaN or infinite after 2 steps"):
        runs.start(tmp_path / "a", (0, 4))
    with pytest.warns(UserWarning, match="No earlier save is finite: start a new run"):
        assert min(CASE.start(tmp_path / "a").watch.losses) == (0, 4)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_run_can_stop_on_nan(library, tmp_path):
    runs = case(library, callbacks=lambda: [Calls(3, spoil(np.nan))], resume={"stop_on_nan": True})
    with pytest.raises(
        FloatingPointError, match=r"after 4 steps: .* step-00000002, is kept. Lower"
    ):
        runs.start(tmp_path / "a")
    assert names(tmp_path / "a") == ["step-00000002"]


# --- settings that changed -----------------------------------------------------------------------


def settings_of(library, optimizer, loss):
    keras = ke.flavor.get(library).keras
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer(keras.optimizers), loss)
    return compile_settings(model)


def own_loss(y, predicted):
    return 0.0


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_changed_settings_are_named(library):
    keras = ke.flavor.get(library).keras
    decay = keras.optimizers.schedules.CosineDecay
    before = settings_of(library, lambda o: o.Adam(0.001), "mse")
    changes = {
        r"settings .* with: optimizer.learning_rate: was 0.001, now 0.01\. ": (
            lambda o: o.Adam(0.01),
            "mse",
        ),
        r"with: optimizer.learning_rate: was 0.001, now 'CosineDecay'\. ": (
            lambda o: o.Adam(decay(0.001, 9)),
            "mse",
        ),
        r"with: optimizer: was 'Adam', now 'SGD'": (lambda o: o.SGD(0.001), "mse"),
        r"with: optimizer.beta_1: was 0.9, now 0.8\. ": (lambda o: o.Adam(0.001, 0.8), "mse"),
        r"with: loss: was 'mse', now 'own_loss'\. ": (lambda o: o.Adam(0.001), own_loss),
        r"with: loss: was 'mse', now 'lambda'\. ": (lambda o: o.Adam(0.001), lambda y, p: 0.0),
    }
    for message, settings in changes.items():
        with pytest.warns(UserWarning, match=message):
            warn_of_changes(before, settings_of(library, *settings))
    steps = [settings_of(library, lambda o, n=n: o.Adam(decay(0.1, n)), "mse") for n in (5, 6)]
    with pytest.warns(UserWarning, match=r"learning_rate.decay_steps: was 5, now 6\. "):
        warn_of_changes(*steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_changes(before, settings_of(library, lambda o: o.Adam(0.001), "mse"))
        warn_of_changes(None, before)


def test_a_run_names_what_changed_when_it_resumes(stopped):
    keras = ke.flavor.get("keras").keras
    other = {**EAGER, "loss": keras.losses.SparseCategoricalCrossentropy()}
    with pytest.warns(UserWarning, match="loss.from_logits: was True, now False"):
        case(compile=other).start(stopped, (1, 5))


# --- data that ends early ------------------------------------------------------------------------


def test_data_without_a_batch_is_refused(tmp_path):
    """`fit(dataset.take(0), epochs=3)` was recorded as a complete run.

    tf_keras raises itself, and so does Keras 3 with metrics.
    """
    plain = {**EAGER, "metrics": None, "weighted_metrics": None}
    for nothing in (lambda: dataset().take(0), lambda: dataset().filter(lambda *batch: False)):
        with pytest.raises(InputError, match=r"must have at least one batch. Received: data with"):
            case(data=nothing, epochs=3, compile=plain).start(tmp_path / "a")
        assert names(tmp_path / "a") == []
    assert len(CASE.start(tmp_path / "a").watch.losses) == 12


def test_a_run_complete_with_other_numbers_of_steps_is_not_complete(tmp_path):
    short = case(data=lambda: dataset().take(2))
    short.start(tmp_path / "a")
    with pytest.raises(InputError, match=r"data of 6 steps per epoch, where .* epochs of 2"):
        CASE.start(tmp_path / "a")
    assert not short.start(tmp_path / "a").watch.losses
    trusting = case(resume={"check_data": False})
    assert not trusting.start(tmp_path / "a").watch.losses


class Ends:
    """A generator of some batches, each start of which goes on where the last one stopped."""

    def __init__(self, batches):
        self.batches = batches

    def __call__(self):
        for seed in range(self.batches):
            yield tuple(map(tf.constant, IDS.batch(4, seed=seed)))


@pytest.mark.parametrize("library", ["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def test_a_run_whose_data_ends_early_resumes_there(library, tmp_path):
    options = {"steps_per_epoch": 6, "epochs": 2}
    whole = case(library, data=lambda: Ends(12)(), **options).start(tmp_path / "whole")
    with pytest.warns(UserWarning, match="data ended at step 3 of 6 of epoch 2. The run is not"):
        short = case(library, data=lambda: Ends(9)(), **options).start(tmp_path / "a")
    assert len(short.watch.losses) == 9
    again = case(library, data=lambda: Ends(12)(), **options).start(tmp_path / "a")
    assert [*again.watch.losses] == [(1, 3), (1, 4), (1, 5)]
    for a, b in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_warning_in_an_ordinary_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CASE.start(tmp_path / "a", (0, 3), shuffle=False)
        CASE.start(tmp_path / "a", shuffle=False)
