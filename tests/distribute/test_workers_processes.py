"""Two worker processes: signals, a worker that hangs, saving, resuming, export and XLA."""

import os
import signal
import time
from pathlib import Path

import fit_helpers as training
import numpy as np
import pytest
from workers import configs, run, start


def small_model(library, strategy, hidden=(), **kwargs):
    """Return a compiled model that is traced quickly, with fixed weights."""
    import zoo

    layers = zoo.keras_of(library).layers
    hidden = [layers.Dense(units, activation="relu") for units in hidden]
    with strategy.scope():
        model = zoo.keras_of(library).Sequential([layers.Input((4,)), *hidden, layers.Dense(3)])
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
        return training.compiled(library, model, **kwargs)


def small_data(n=21, batch_size=10):
    """Return batches for `small_model`."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, 4)).astype("float32"), rng.integers(0, 3, n)
    return training.batches(x, y, batch_size=batch_size)


def fit_endlessly(library, ready):
    """Train until stopped; write the process id to a file, `ready` and the worker's index."""
    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=300)
    index = strategy.cluster.index
    model = small_model(library, strategy)
    ke.accumulate(model, 2)

    class Ready(ke.flavor.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not Path(f"{ready}{index}").exists():
                Path(f"{ready}{index}.new").write_text(str(os.getpid()))
                Path(f"{ready}{index}.new").rename(f"{ready}{index}")

    data = small_data().repeat()
    model.fit(data, steps_per_epoch=10**6, callbacks=[Ready()], shuffle=False, verbose=0)


def fit_compiled(library, strategy):
    """Train a model that XLA compiles; return results and weights."""
    import keras_efficient as ke

    model = small_model(library, strategy, hidden=(8,), jit_compile=True)
    ke.accumulate(model, 2)
    data = small_data()
    model.fit(data, validation_data=data, shuffle=False, verbose=0)
    return model.evaluate(data, return_dict=True, verbose=0), model.get_weights()


def ended(process, seconds):
    """Wait for the exit code; return None if the process has not ended by then."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return process.poll()


@pytest.fixture
def pair(tmp_path):
    """A function that starts two workers, which train until they are stopped."""
    processes = []
    ready = [tmp_path / f"ready{index}" for index in range(2)]

    def begin(library="keras"):
        arguments = (library, str(tmp_path / "ready"))
        processes.extend(start(fit_endlessly, arguments, tmp_path, configs(2)))
        deadline = time.monotonic() + 600
        while not all(file.exists() for file in ready):
            codes = [process.poll() for process in processes]
            assert codes == [None, None] and time.monotonic() < deadline, (
                tmp_path / "log0"
            ).read_text()[-3000:]
            time.sleep(0.1)
        return processes, [int(file.read_text()) for file in ready]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_sigterm_ends_a_script_that_does_not_catch_it(pair):
    """TensorFlow's coordination service installs a C++ handler that ignores the signal."""
    processes, pids = pair()
    # Both at once, because a worker also ends when it loses the connection to another.
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for process in processes:
        assert ended(process, 60) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_worker_that_hangs_is_noticed(pair, tmp_path, frozen):
    """By TensorFlow's heartbeat, 9 to 10 seconds after the worker froze."""
    processes, pids = pair()
    os.kill(pids[frozen], signal.SIGSTOP)
    assert ended(processes[1 - frozen], 90) not in (None, 0)
    log = (tmp_path / f"log{1 - frozen}").read_text()
    assert "aborted" in log or "nhealthy" in log or "UNAVAILABLE" in log or "Unavailable" in log


def everyday(library, folder):
    """Do what scripts do besides training, with a model that has no embedding.

    Returns:
        `(compiled, code, resumed, refused, rates)`: the result of `fit_compiled`, the exit code on
        SIGTERM, the numbers of updates before and after resuming, the message about folders that
        are not shared, and the learning rates in the log.
    """
    from in_process_export import serve_here

    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=300)
    assert ke.strategy("auto") is strategy, "a second call gives the same one"
    compiled = fit_compiled(library, strategy)
    index, code = strategy.cluster.index, None
    model, data, log = small_model(library, strategy), small_data(), ke.callbacks.RunLog()
    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=[log])
    model.save(f"{folder}/model.keras")
    model.save_weights(f"{folder}/all.weights.h5")
    with pytest.MonkeyPatch.context() as patch:
        serve_here(patch)
        sample = np.ones((2, 4), "float32")
        ke.export(model, f"{folder}/export", sample=sample, latency=False)

    class Late(ke.flavor.Callback):
        """Sends SIGTERM to the second worker after all updates of the epoch."""

        def on_test_begin(self, logs=None):
            if index == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    resume = ke.callbacks.Resume(f"{folder}/run")
    try:
        model.fit(data, validation_data=data, shuffle=False, verbose=0, callbacks=[resume, Late()])
    except SystemExit as stop:
        code = stop.code
    saved, model = model.get_weights(), small_model(library, strategy)
    before = int(model.optimizer.iterations.numpy())
    model.fit(data, shuffle=False, verbose=0, callbacks=[ke.callbacks.Resume(f"{folder}/run")])
    resumed = before, int(model.optimizer.iterations.numpy())
    for a, b in zip(saved, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # The second worker looks for checkpoints in another folder.
    own, refused = (f"{folder}/run", f"{folder} of another machine")[index], None
    try:
        small_model(library, strategy).fit(
            data, shuffle=False, verbose=0, callbacks=[ke.callbacks.Resume(own)]
        )
    except ke.InputError as error:
        refused = str(error)
    # Last, because a worker that fails while the others read breaks the collectives.
    with pytest.raises(Exception):  # noqa: B017
        model.save_weights(f"{folder}/{'model.keras/' * (index == 0)}no.weights.h5")
    return compiled, code, resumed, refused, [step["learning_rate"] for step in log.steps]


@pytest.mark.full
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_what_scripts_do_besides_training(library, tmp_path):
    """XLA for the microbatches, a log, saving, export, SIGTERM, and resuming."""
    import tensorflow as tf
    import zoo

    folder = tmp_path / "shared"
    folder.mkdir()
    both = run(everyday, library, str(folder))
    for _, code, resumed, refused, rates in both:
        assert "All workers must see the same checkpoints" in refused
        assert "step 3, none" in refused
        assert rates == pytest.approx([0.5] * 6)
        assert code == 143
        # The epoch was complete: nothing is trained again.
        assert resumed[0] == 0 and resumed[1] == 9
    written = {path.name for path in folder.iterdir()}
    assert written == {"model.keras", "all.weights.h5", "export", "run"}
    assert [path.name for path in (folder / "export").iterdir()] == ["1"]
    assert [path.name for path in (folder / "run").iterdir()] == ["step-00000003-epoch-0001"]
    zoo.keras_of(library).models.load_model(folder / "model.keras")

    (results, weights), (its_results, its_weights) = (compiled for compiled, *_ in both)
    alone, its = fit_compiled(library, tf.distribute.get_strategy())
    assert results == its_results
    assert results == pytest.approx(alone, abs=1e-5)
    for here, there, one in zip(weights, its_weights, its, strict=True):
        assert (here == there).all()
        assert abs(here - one).max() < 1e-5


def many_steps(library, steps):
    """Train with several steps per call, on two devices and TensorFlow's collectives."""
    import tensorflow as tf

    import keras_efficient as ke

    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    model = small_model(library, ke.strategy("mirrored"), steps_per_execution=steps)
    ke.accumulate(model, 2)
    try:
        model.fit(small_data(32, 8), shuffle=False, verbose=0)
    except tf.errors.InvalidArgumentError as error:
        return str(error)
    return model.get_weights()


def test_many_steps_per_call_of_tf_keras_on_replicas():
    (one,), (many,) = (run(many_steps, "tf_keras", steps, count=1) for steps in (1, 2))
    for a, b in zip(one, many, strict=True):
        assert abs(a - b).max() < 1e-6


def test_upstream_keras_3_still_cannot_make_many_steps_per_call_on_replicas():
    """With TensorFlow's collectives, in any training step, as docs/distributed.md says."""
    (error,) = run(many_steps, "keras", 2, count=1)
    assert "You must feed a value for placeholder" in error
