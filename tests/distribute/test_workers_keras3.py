"""Models of both libraries on two workers, and the parts of Keras 3 that this relies on."""

import ast
import inspect
import textwrap

import fit_helpers as training
import numpy as np
import pytest
import workers
import zoo
from covering import sampled

#: With these, callbacks and saving are tested too.
EVERYDAY = KERAS, TF_KERAS = "keras-sequential", "tf_keras-sequential"
SEQUENTIAL = zoo.Specimen(TF_KERAS, "tf_keras", zoo._sequential("tf_keras"), lambda x: x)
#: Models that take longer; test_workers_minilm.py trains MiniLM, too.
LIBRARIES = (
    "keras-functional",
    "tf_keras-functional",
    "kerashub-bert",
    "hugging-face-bert",
    "model-garden-bert",
)
N, BATCH = 21, 10
#: Seconds that a run of worker processes may take; a machine may be busy.
PATIENCE = 600


def specimen_of(name):
    return next(each for each in (SEQUENTIAL, *zoo.ZOO) if each.name == name)


def made(name, strategy, k=2):
    """Return a compiled model of the zoo, with k microbatches if given."""
    import keras_efficient as ke

    specimen = specimen_of(name)
    with strategy.scope():
        model = training.compiled(specimen.library, specimen.make(), jit_compile=False)
        if k:
            ke.accumulate(model, k)
    return model


def data_of(name, batch_size=BATCH):
    return training.batches(*specimen_of(name).batch(N), batch_size=batch_size)


def logits(outputs):
    return np.asarray(outputs["logits"] if hasattr(outputs, "keys") else outputs)


def trained(model, name, data=None, epochs=2, callbacks=()):
    """Train with validation, evaluate and predict; return the results."""
    held_out = data_of(name, 8)
    fitted = model.fit(
        data_of(name) if data is None else data,
        epochs=epochs,
        validation_data=held_out,
        callbacks=list(callbacks),
        shuffle=False,
        verbose=0,
    )
    return {
        "weights": model.get_weights(),
        "history": fitted.history,
        "evaluation": model.evaluate(held_out, return_dict=True, verbose=0),
        "predictions": logits(model.predict(held_out, verbose=0)),
    }


def everyday(model, name, index, folder):
    """Train with common callbacks and save; each worker also writes to `folder/<worker>`."""
    import keras_efficient as ke

    library, keras = specimen_of(name).library, zoo.keras_of(specimen_of(name).library)
    common, own = folder / name, folder / name / str(index)
    own.mkdir(parents=True)
    checkpoints = keras.callbacks.ModelCheckpoint
    callbacks = [
        checkpoints(str(common / "best.keras"), save_best_only=True),
        checkpoints(str(own / "best.weights.h5"), save_best_only=True, save_weights_only=True),
        # No epoch improves the loss this much, so the second is the last.
        keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=10.0),
    ]
    if ke.distribute.is_chief():
        callbacks.append(keras.callbacks.TensorBoard(str(common / "logs"), write_graph=False))
    found = trained(model, name, epochs=5, callbacks=callbacks)
    if library == "keras":
        # To the same path, as on a shared disk, and to a path of this worker.
        for place in (common, own):
            model.save(place / "model.keras")
            model.save(filepath=str(place / "again.keras"))
            model.save_weights(place / "all.weights.h5")
        # When `save` returns on any worker, the file is complete.
        keras.models.load_model(common / "model.keras", compile=False)
    return found


def train_libraries():
    """Train the larger models on this worker."""
    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=300)
    names = [name for name in LIBRARIES if zoo.GARDEN or name != "model-garden-bert"]
    return {name: trained(made(name, strategy), name) for name in names}


def few():
    """Return batches of one example, the first of which leaves the second worker none."""
    return data_of(KERAS, 1).take(3)


def train_all(folder):
    """Train everything else on this worker.

    One process and few models, since starting a process and tracing a model take the longest.
    """
    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=300)
    index = strategy.cluster.index
    found = {TF_KERAS: everyday(made(TF_KERAS, strategy), TF_KERAS, index, folder)}
    # Without this package's training step.
    found["plain"] = trained(made(KERAS, strategy, k=None), KERAS)
    model = made(KERAS, strategy)
    start = model.get_weights()
    found["few"] = trained(model, KERAS, few())
    model.set_weights(start)
    found[KERAS] = everyday(model, KERAS, index, folder)
    model.set_weights(start)
    model.fit(*specimen_of(KERAS).batch(N), batch_size=BATCH, epochs=2, verbose=0)
    found["arrays"] = model.get_weights()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def both(folder):
    """What `train_all` returns on each of two workers."""
    return workers.run(train_all, folder, count=2, timeout=PATIENCE)


@pytest.fixture(scope="module")
def libraries():
    """What `train_libraries` returns on each of two workers."""
    return workers.run(train_libraries, count=2, timeout=PATIENCE)


def alone(name, k=2, data=None):
    """Train the same in a single process."""
    import tensorflow as tf

    return trained(made(name, tf.distribute.get_strategy(), k), name, data)


def assert_equal(found, other):
    """Two workers' results are the same, bit for bit."""
    for a, b in zip(found["weights"], other["weights"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert found["history"] == other["history"]
    assert found["evaluation"] == other["evaluation"]
    np.testing.assert_array_equal(found["predictions"], other["predictions"])


def assert_close(found, reference, atol=1e-5):
    for a, b in zip(found["weights"], reference["weights"], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    assert found["history"].keys() == reference["history"].keys()
    assert all(len(values) == 2 for values in found["history"].values())
    training.assert_same_history(found["history"], reference["history"], atol)
    assert found["evaluation"].keys() == reference["evaluation"].keys()
    for name, value in found["evaluation"].items():
        np.testing.assert_allclose(value, reference["evaluation"][name], atol=atol, err_msg=name)
    assert len(found["predictions"]) == N
    np.testing.assert_allclose(found["predictions"], reference["predictions"], atol=atol)


# --- as one process ------------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("name", EVERYDAY)
def test_two_workers_do_what_one_process_does(name, both):
    assert_as_one_process(name, both)


@pytest.mark.full
@pytest.mark.parametrize("name", LIBRARIES)
def test_two_workers_do_what_one_process_does_with_models_of_libraries(name, libraries):
    if name == "model-garden-bert":
        zoo.model_garden()
    assert_as_one_process(name, libraries)


def assert_as_one_process(name, both):
    assert_equal(both[0][name], both[1][name])
    assert_close(both[0][name], alone(name))
    # The models were trained at all.
    before = specimen_of(name).make().get_weights()
    after = both[0][name]["weights"]
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True) if a.size) > 1e-3


def test_keras_own_step_on_two_workers(both):
    """Without `ke.accumulate`; a ragged batch is then weighed as Keras does (trap 15)."""
    assert_equal(both[0]["plain"], both[1]["plain"])


def test_shuffled_numpy_arrays(both):
    for a, b, ordered in zip(
        both[0]["arrays"],
        both[1]["arrays"],
        both[0][KERAS]["weights"],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
        # In another order the result is similar.
        np.testing.assert_allclose(a, ordered, atol=0.2)


def test_a_first_batch_of_one_example(both):
    """Trap 16, over workers."""
    assert_equal(both[0]["few"], both[1]["few"])
    assert_close(both[0]["few"], alone(KERAS, data=few()))


# --- callbacks and files -------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERYDAY)
def test_early_stopping_stops_both_at_the_same_epoch(name, both):
    first, second = (each[name]["history"] for each in both)
    assert first == second
    assert len(first["loss"]) == 2


@pytest.mark.parametrize("name", EVERYDAY)
def test_only_the_first_worker_leaves_files(name, both, folder):
    written = {path.name for path in (folder / name / "0").iterdir()}
    assert not list((folder / name / "1").iterdir())
    expected = {"best.weights.h5"}
    if name.startswith("keras"):
        expected |= {"model.keras", "again.keras", "all.weights.h5"}
    assert written == expected


@sampled()
@pytest.mark.parametrize("file", ["0/model.keras", "0/again.keras", "model.keras", "again.keras"])
def test_a_saved_model_is_whole(file, both, folder):
    import keras

    model = keras.models.load_model(folder / KERAS / file)
    for a, b in zip(model.get_weights(), both[1][KERAS]["weights"], strict=True):
        np.testing.assert_array_equal(a, b)
    x, y = specimen_of(KERAS).batch(4)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("file", ["0/all.weights.h5", "all.weights.h5"])
def test_saved_weights_are_whole(file, both, folder):
    model = specimen_of(KERAS).make()
    model.load_weights(folder / KERAS / file)
    for a, b in zip(model.get_weights(), both[1][KERAS]["weights"], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", EVERYDAY)
def test_the_best_checkpoint_is_whole(name, both, folder):
    keras = zoo.keras_of(specimen_of(name).library)
    keras.models.load_model(folder / name / "best.keras")
    specimen_of(name).make().load_weights(folder / name / "0" / "best.weights.h5")


@pytest.mark.parametrize("name", EVERYDAY)
def test_tensorboard_on_the_first_worker(name, both, folder):
    assert list((folder / name / "logs" / "train").iterdir())
    assert list((folder / name / "logs" / "validation").iterdir())


# --- other models stay as they were --------------------------------------------------------------


#: Replicas and microbatches; None: Keras' own training step.
CASES = ((1, None), (2, 2))


def pass_through(folder):
    """Train models under other strategies, before and after Keras is adapted to workers."""
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    import keras
    from keras.src.backend.tensorflow import trainer
    from keras.src.saving import saving_api

    import keras_efficient as ke
    from keras_efficient.distribute._multi_worker_strategy import MultiWorkerStrategy

    name = KERAS
    x, y = specimen_of(name).batch(N)

    def everything():
        found = {}
        for replicas, k in CASES:
            model = made(name, training.mirrored(replicas), k)
            found[replicas, k] = trained(model, name)
            file = f"{folder}/{replicas}{k}.keras"
            model.save(file, overwrite=True)
            model.save_weights(f"{folder}/{replicas}{k}.weights.h5", overwrite=True)
            loaded = keras.models.load_model(file, compile=False)
            found[replicas, k]["saved"] = loaded.get_weights()
            if replicas == 1:
                found[replicas, k]["batch"] = model.train_on_batch(x, y)
                found[replicas, k]["test"] = model.test_on_batch(x, y)
        return found

    def patched():
        return (
            trainer.TensorFlowTrainer._maybe_symbolic_build,
            trainer.reduce_per_replica,
            saving_api.save_model,
            saving_api.save_weights,
        )

    plain, before = patched(), everything()
    ke.flavor.get("keras").enable_multi_worker(MultiWorkerStrategy)
    once = patched()
    ke.flavor.get("keras").enable_multi_worker(MultiWorkerStrategy)
    assert patched() == once, "adapted twice"
    assert not set(map(id, plain)) & set(map(id, once)), "not adapted"
    return before, everything()


def test_models_under_other_strategies_stay_as_they_were(tmp_path):
    ((before, after),) = workers.run(pass_through, tmp_path, count=1, timeout=PATIENCE)
    assert set(before) == set(after) == set(CASES)
    for case, found in before.items():
        assert_close(after[case], found, atol=1e-6)
        for part in ("batch", "test"):
            if part in found:
                np.testing.assert_allclose(after[case][part], found[part], atol=1e-6)
        for a, b in zip(found["saved"], after[case]["saved"], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


# --- upstream ------------------------------------------------------------------------------------


def fit_without_this_package():
    """Fit a Keras 3 model under TensorFlow's own class, in two ways; return the errors (trap 17).

    First, `ke.callbacks.Resume` refuses that class.
    """
    import functools
    import traceback

    import keras
    import tensorflow as tf

    import keras_efficient as ke

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    refused = None
    try:
        model = made(TF_KERAS, strategy, k=None)
        model.fit(data_of(TF_KERAS), verbose=0, callbacks=[ke.callbacks.Resume("none")])
    except ke.InputError as error:
        refused = str(error)
    keras.config.disable_traceback_filtering()
    from keras_efficient.flavor._keras3_multi_worker import build_from_replica_spec

    name, found = KERAS, []
    for builds in (False, True):
        model = made(name, strategy, k=None)
        if builds:
            build = model._maybe_symbolic_build
            model._maybe_symbolic_build = functools.partial(build_from_replica_spec, model, build)
        try:
            model.fit(data_of(name), shuffle=False, verbose=0)
            found.append(None)
        except Exception:
            found.append(traceback.format_exc())
    return refused, *found


@pytest.fixture(scope="module")
def without_this_package():
    """What `fit_without_this_package` returns on each of two workers."""
    return workers.run(fit_without_this_package, count=2, timeout=PATIENCE)


def test_resume_refuses_plain_strategies_of_several_workers(without_this_package):
    for refused, *_ in without_this_package:
        assert "needs a strategy that knows their cluster" in refused


def test_upstream_keras_3_still_cannot_fit_on_several_workers(without_this_package):
    """If this fails, see which parts of `Keras3.enable_multi_worker` can go."""
    for index, (_, plain, built) in enumerate(without_this_package):
        assert plain and "_maybe_symbolic_build" in plain, f"worker {index}: {plain}"
        assert built and "reduce_per_replica" in built, f"worker {index}: {built}"


def names_called(function):
    """`a.b` of every call `a.b(…)` and `f` of every call `f(…)` in a function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


MOVED = (
    "Keras has changed what `Keras3.enable_multi_worker` replaces "
    "(keras_efficient/flavor/_keras3_multi_worker.py): {}. Find where that is done now, replace "
    "it there, and run this file's tests."
)


def test_keras_still_reduces_through_reduce_per_replica():
    from keras.src.backend.tensorflow import trainer

    hint = MOVED.format("`reduce_per_replica(values, strategy, reduction)` as a global of trainer")
    assert hasattr(trainer, "reduce_per_replica"), hint
    parameters = list(inspect.signature(trainer.reduce_per_replica).parameters)
    assert parameters == ["values", "strategy", "reduction"], hint
    for maker in ("_make_function", "make_predict_function"):
        called = names_called(getattr(trainer.TensorFlowTrainer, maker))
        assert "reduce_per_replica" in called, hint


def test_keras_still_builds_through_maybe_symbolic_build():
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    hint = MOVED.format("`_maybe_symbolic_build(self, iterator=None, data_batch=None)`")
    assert hasattr(TensorFlowTrainer, "_maybe_symbolic_build"), hint
    signature = inspect.signature(TensorFlowTrainer._maybe_symbolic_build)
    assert str(signature) == "(self, iterator=None, data_batch=None)", hint
    for name in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
        called = names_called(getattr(TensorFlowTrainer, name))
        assert "self._maybe_symbolic_build" in called, f"{hint} ({name})"
    assert "_distributed_dataset" in inspect.getsource(inspect.getmodule(TensorFlowTrainer)), hint


def test_keras_still_saves_through_saving_api():
    import keras

    for method, function in (("save", "save_model"), ("save_weights", "save_weights")):
        hint = MOVED.format(f"`Model.{method}` calls `saving_api.{function}(self, filepath, …)`")
        assert f"saving_api.{function}" in names_called(getattr(keras.Model, method)), hint
    called = names_called(keras.callbacks.ModelCheckpoint._save_model)
    hint = MOVED.format("ModelCheckpoint saves through the model's own methods")
    assert {"self.model.save", "self.model.save_weights"} <= called, hint


def test_keras_still_divides_losses_by_replicas_in_its_loss_module():
    from keras.src.losses import loss
    from keras.src.trainers import compile_utils

    hint = (
        "keras.src.losses.loss has changed: `Keras3.unscaled` and `_reductions` replace functions "
        "there. Find where a loss is divided by replicas, and by its weights, and adapt them."
    )
    for name in (
        "scale_loss_for_distribution",
        "unscale_loss_for_distribution",
        "reduce_weighted_values",
        "standardize_reduction",
        "apply_mask",
    ):
        assert callable(getattr(loss, name, None)), f"{hint} ({name})"
    assert "reduce_weighted_values" in names_called(loss.Loss.__call__), hint
    assert hasattr(compile_utils, "CompileLoss"), hint
