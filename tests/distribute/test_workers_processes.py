"""Two worker processes: XLA, signals, a worker that hangs, and folders that are not shared."""

import signal
import time
from pathlib import Path

import pytest
from workers import configs, run, start


def fit(library, steps=None, folder=None, ready=None):
    """Train a small model; `ready` is a file that is made when training has begun."""
    import fit_helpers as training
    import zoo

    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=120)
    (specimen,) = (s for s in zoo.ZOO if s.name == f"{library}-functional")
    x, y = specimen.batch(21)
    with strategy.scope():
        model = training.compiled(library, specimen.make())
    ke.accumulate(model, 2)
    callbacks = [ke.callbacks.Resume(folder)] if folder else []
    if ready:

        class Ready(ke.flavor.Callback):
            def on_train_batch_end(self, batch, logs=None):
                Path(ready).touch()

        callbacks.append(Ready())
    data = training.batches(x, y, batch_size=10)
    if steps:
        data = data.repeat()
    model.fit(data, steps_per_epoch=steps, callbacks=callbacks, shuffle=False, verbose=0)
    return model.evaluate(data, return_dict=True, verbose=0), model.get_weights()


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_xla_compiles_the_microbatches_and_evaluation_goes_on_without(library):
    (results, weights), (its_results, its_weights) = run(fit_compiled, library)
    ((alone, its), *_) = run(fit_compiled, library, count=1)
    assert results == its_results
    assert results == pytest.approx(alone, abs=1e-5)
    for here, there, one in zip(weights, its_weights, its, strict=True):
        assert (here == there).all()
        assert abs(here - one).max() < 1e-5


def fit_compiled(library):
    """Train a model that XLA compiles quickly (attention takes a minute on a CPU)."""
    import fit_helpers as training
    import numpy as np
    import zoo

    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=120)
    layers = zoo.keras_of(library).layers
    with strategy.scope():
        model = zoo.keras_of(library).Sequential(
            [layers.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(3)]
        )
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
        training.compiled(library, model, jit_compile=True)
    ke.accumulate(model, 2)
    x, y = rng.normal(size=(21, 4)).astype("float32"), rng.integers(0, 3, 21)
    data = training.batches(x, y, batch_size=10)
    model.fit(data, validation_data=data, shuffle=False, verbose=0)
    return model.evaluate(data, return_dict=True, verbose=0), model.get_weights()


def ended(process, seconds):
    """The exit code, or None if it has not ended by then."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return process.poll()


@pytest.fixture
def pair(tmp_path):
    """Two workers that train until they are stopped, and a function to start them."""
    processes = []

    def begin(library="keras"):
        arguments = (library, 10**6, None, str(tmp_path / "ready"))
        processes.extend(start(fit, arguments, tmp_path, configs(2)))
        deadline = time.monotonic() + 120
        while not (tmp_path / "ready").exists():
            codes = [process.poll() for process in processes]
            assert codes == [None, None] and time.monotonic() < deadline, (
                tmp_path / "log0"
            ).read_text()[-3000:]
            time.sleep(0.1)
        return processes

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_sigterm_ends_a_script_that_does_not_catch_it(pair):
    """TensorFlow's coordination puts a handler below Python's, which swallows it."""
    for process in pair():
        process.send_signal(signal.SIGTERM)
        assert ended(process, 60) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_worker_that_hangs_is_noticed(pair, tmp_path, frozen):
    """By TensorFlow's heartbeat: measured 9 to 10 seconds after it froze."""
    processes = pair()
    processes[frozen].send_signal(signal.SIGSTOP)
    assert ended(processes[1 - frozen], 90) not in (None, 0)
    log = (tmp_path / f"log{1 - frozen}").read_text()
    assert "aborted" in log or "nhealthy" in log or "UNAVAILABLE" in log or "Unavailable" in log


def test_workers_that_do_not_share_the_folder_are_told(tmp_path):
    folder = tmp_path / "apart"
    folder.mkdir()
    run(fit, "keras", None, str(folder / "shared"))
    messages = run(resume_elsewhere, str(folder))
    assert all("All workers must see the same saved runs" in message for message in messages)
    assert all("step 3, none" in message for message in messages)


def resume_elsewhere(folder):
    import keras_efficient as ke

    index = ke.distribute.Cluster.from_environment().index
    try:
        fit("keras", folder=f"{folder}/{('shared', 'another')[index]}")
    except ke.InputError as error:
        return str(error)


def test_plain_strategies_of_several_workers_are_refused():
    messages = run(resume_plain)
    assert all("needs a strategy that knows their cluster" in message for message in messages)


def resume_plain():
    import numpy as np
    import tensorflow as tf
    import tf_keras

    import keras_efficient as ke

    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        model = tf_keras.Sequential([tf_keras.layers.Input((2,)), tf_keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    try:
        model.fit(
            np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[ke.callbacks.Resume("none")]
        )
    except ke.InputError as error:
        return str(error)


def everyday(library, folder):
    """What scripts do besides training, with a model that has no embedding."""
    import os

    import fit_helpers as training
    import numpy as np
    import zoo

    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=120)
    assert ke.strategy("auto") is strategy, "a second call gives the same one"
    index, layers, said = strategy.cluster.index, zoo.keras_of(library).layers, []
    with strategy.scope():
        model = zoo.keras_of(library).Sequential([layers.Input((4,)), layers.Dense(3)])
        training.compiled(library, model)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, 4)).astype("float32"), rng.integers(0, 3, 21)
    data = training.batches(x, y, batch_size=10)
    log = ke.callbacks.RunLog()
    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=[log])
    model.save(f"{folder}/model.keras")
    model.save_weights(f"{folder}/all.weights.h5")
    ke.export(model, f"{folder}/export", sample=x[:2], latency=False)

    class Late(ke.flavor.Callback):
        """The second worker hears of its end when all updates are made."""

        def on_test_begin(self, logs=None):
            if index == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    run = [ke.callbacks.Resume(f"{folder}/run"), Late()]
    try:
        model.fit(data, validation_data=data, shuffle=False, verbose=0, callbacks=run)
    except SystemExit as stop:
        said.append(stop.code)
    # Last: a worker that failed while others read leaves the collectives broken.
    try:
        model.save_weights(f"{folder}/{'model.keras/' * (index == 0)}no.weights.h5")
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    return said, [step["learning_rate"] for step in log.steps], model.get_weights()


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_what_scripts_do_besides_training(library, tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    for said, rates, _ in run(everyday, library, str(folder)):
        code, _ = said
        assert rates == pytest.approx([0.5] * 6)
        assert code == 143
    written = {path.name for path in folder.iterdir()}
    assert written == {"model.keras", "all.weights.h5", "export", "run"}
    assert [path.name for path in (folder / "export").iterdir()] == ["1"]
    assert [path.name for path in (folder / "run").iterdir()] == ["step-00000003-epoch-0001"]
    import zoo

    zoo.keras_of(library).models.load_model(folder / "model.keras")


def many_steps(library, steps):
    """Train with several steps per call, on two devices and TensorFlow's collectives."""
    import tensorflow as tf

    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    import fit_helpers as training
    import zoo

    import keras_efficient as ke

    specimen = next(s for s in zoo.ZOO if s.library == library)
    with ke.strategy("mirrored").scope():
        model = training.compiled(library, specimen.make(), steps_per_execution=steps)
    ke.accumulate(model, 2)
    data = training.batches(*specimen.batch(32), batch_size=8)
    try:
        model.fit(data, shuffle=False, verbose=0)
    except tf.errors.InvalidArgumentError as error:
        return str(error)
    return model.get_weights()


def test_many_steps_per_call_of_tf_keras_on_replicas():
    (one,), (many,) = (run(many_steps, "tf_keras", steps, count=1) for steps in (1, 2))
    for a, b in zip(one, many, strict=True):
        assert abs(a - b).max() < 1e-6


def test_upstream_keras_3_still_cannot_make_many_steps_per_call_on_replicas():
    """With TensorFlow's collectives, whoever's step it is. (docs/distributed.md says so.)"""
    (error,) = run(many_steps, "keras", 2, count=1)
    assert "You must feed a value for placeholder" in error
