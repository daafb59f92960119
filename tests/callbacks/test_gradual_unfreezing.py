"""Gradual unfreezing: what trains in which epoch, and that the optimizer and runs go on."""

import numpy as np
import pytest
from fit_helpers import compiled, fit, mirrored
from resumed_runs import Case, assert_goes_on
from zoo import LENGTH, VOCABULARY, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.flavor import Callback
from keras_efficient.parametrize import _attach as attach
from keras_efficient.parametrize._weights import all_weights
from keras_efficient.training import _train_step_hook as train_step_hook

SPECIMENS = {specimen.name: specimen for specimen in ZOO}
BERTS = [SPECIMENS[name] for name in ("kerashub-bert", "hugging-face-bert", "model-garden-bert")]
TWO = BERTS[:2]
#: Of a functional model.
STAGES = ["dense", "multi_head|layer_norm", "embedding"]


def values(model):
    return [weight.value.numpy() for weight in all_weights(model)]


class Moved(Callback):
    """Notes which weights each epoch moved."""

    def __init__(self):
        self.epochs, self.trainable = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = values(self.model)
        self.trainable.append(len(self.model.trainable_weights))

    def on_epoch_end(self, epoch, logs=None):
        pairs = zip(values(self.model), self.before, strict=True)
        self.epochs.append({n for n, (a, b) in enumerate(pairs) if (a != b).any()})


def run(specimen, callback, *, epochs=4, caller=None, replicas=1, **kwargs):
    with mirrored(replicas).scope():
        model = specimen.make()
        if caller is not None:
            caller(model)
        compiled(specimen.library, model, jit_compile=kwargs.pop("jit_compile", False))
    moved = Moved()
    x, y = specimen.batch(16)
    history = fit(model, x, y, batch_size=8, epochs=epochs, callbacks=[callback, moved], **kwargs)
    return model, moved, history


def places(model, paths):
    """The numbers of the weights with these paths."""
    return {n for n, weight in enumerate(all_weights(model)) if weight.path in paths}


@pytest.mark.parametrize("specimen", BERTS, ids=repr)
def test_from_the_head_down(specimen):
    callback = ke.callbacks.GradualUnfreezing()
    model, moved, history = run(specimen, callback, caller=lambda m: ke.accumulate(m, 2))
    head, block, embeddings = (places(model, paths) for paths in callback.paths)
    assert len(head | block | embeddings) == len(all_weights(model))
    assert all("layer_" in path for path in callback.paths[1])
    assert all("embed" in path for path in callback.paths[2])
    first, second, third, fourth = moved.epochs
    assert first and first <= head
    assert second <= head | block and second & block
    assert third & embeddings and fourth & embeddings
    assert history["stage"] == [0, 1, 2, 2]
    # The last one ends as the first began: everything trains.
    plain = specimen.make()
    assert len(model.trainable_weights) == len(plain.trainable_weights)
    assert moved.trainable[:3] == [len(head), len(head | block), len(plain.trainable_weights)]
    assert not attach.views(model)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_stages_of_ones_own(library):
    specimen = SPECIMENS[f"{library}-functional"]
    callback = ke.callbacks.GradualUnfreezing(2, STAGES)
    model, moved, history = run(specimen, callback, epochs=5)
    stages = [places(model, paths) for paths in callback.paths]
    assert history["stage"] == [0, 0, 1, 1, 2]
    for epoch, stage in enumerate(history["stage"]):
        free = set().union(*stages[: stage + 1])
        assert moved.epochs[epoch] & stages[stage] and moved.epochs[epoch] <= free


@pytest.mark.parametrize("specimen", TWO, ids=repr)
def test_when_all_train_at_once_it_is_a_plain_fit(specimen):
    """A stage with everything in it: the same run as without the callback."""
    everything = ke.callbacks.GradualUnfreezing(stages=["", "bias"])
    ours, _, history = run(specimen, everything, epochs=2)
    plain, _, expected = run(specimen, Callback(), epochs=2)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    for a, b in zip(values(ours), values(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def slots(model):
    own = model.optimizer.variables
    return [np.asarray(v) for v in (own() if callable(own) else own)]


@pytest.mark.parametrize("specimen", TWO, ids=repr)
def test_the_optimizer_keeps_what_it_knows(specimen):
    """Adam's averages of the head go on when a block joins, and count all updates."""

    class Slots(Callback):
        def __init__(self):
            self.begin, self.end = [], []

        def on_epoch_begin(self, epoch, logs=None):
            self.begin.append(slots(self.model))

        def on_epoch_end(self, epoch, logs=None):
            self.end.append(slots(self.model))

    seen = Slots()
    x, y = specimen.batch(16)
    model = specimen.make()
    compiled(specimen.library, model, keras_of(specimen.library).optimizers.Adam(0.01))
    callbacks = [ke.callbacks.GradualUnfreezing(), seen]
    fit(model, x, y, batch_size=8, epochs=3, callbacks=callbacks)
    for end, begin in zip(seen.end, seen.begin[1:], strict=False):
        assert len(end) == len(begin)
        for a, b in zip(end, begin, strict=True):
            np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == 6
    number = len(slots(model))
    fit(model, x, y, batch_size=8)
    assert len(slots(model)) == number


@pytest.mark.parametrize("specimen", TWO, ids=repr)
def test_two_replicas_are_one(specimen):
    one, *_ = run(specimen, ke.callbacks.GradualUnfreezing(), epochs=3)
    two, moved, _ = run(specimen, ke.callbacks.GradualUnfreezing(), epochs=3, replicas=2)
    for a, b in zip(values(one), values(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(moved.epochs[0]) < len(moved.epochs[2])


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_xla(library):
    specimen = SPECIMENS[f"{library}-functional"]
    ours = [
        run(specimen, ke.callbacks.GradualUnfreezing(stages=STAGES), epochs=3, jit_compile=jit)[0]
        for jit in (False, True)
    ]
    for a, b in zip(*map(values, ours), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_with_an_average_a_window_and_validation(library):
    specimen = SPECIMENS[f"{library}-functional"]
    x, y = specimen.batch(16)
    model = compiled(library, specimen.make())
    callbacks = [
        ke.callbacks.GradualUnfreezing(stages=STAGES),
        ke.callbacks.BatchSizeSchedule({0: 3}),
        ke.callbacks.EMA(0.9),
    ]
    history = fit(model, x, y, batch_size=4, epochs=3, callbacks=callbacks, validation_data=(x, y))
    assert history["stage"] == [0, 1, 2] and len(history["val_loss"]) == 3
    assert int(model.optimizer.iterations) == 6


def test_beside_lora():
    """What is frozen already stays so; deltas train from the start."""
    specimen = SPECIMENS["kerashub-bert"]
    callback = ke.callbacks.GradualUnfreezing(stages=["logits", ""])
    model, moved, _ = run(
        specimen, callback, epochs=2, caller=lambda m: ke.lora(m, 2, train="pool")
    )
    assert callback.paths[0] == [] and all("pool" in path for path in callback.paths[1])
    assert moved.epochs[0] == set()
    assert moved.epochs[1] == places(model, callback.paths[1])
    assert all(t.b.numpy().any() for t in attach.transforms(model))


def test_a_second_fit_goes_on():
    specimen = SPECIMENS["keras-functional"]
    callback = ke.callbacks.GradualUnfreezing(stages=STAGES)
    model, *_ = run(specimen, callback, epochs=2)
    x, y = specimen.batch(16)
    history = fit(model, x, y, epochs=4, initial_epoch=2, callbacks=[callback])
    assert history["stage"] == [2, 2]
    assert train_step_hook.of(model) is None


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_after_a_fit_that_failed(library):
    class Fail(Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("no more")

    specimen = SPECIMENS[f"{library}-functional"]
    model, (x, y) = compiled(library, specimen.make()), specimen.batch(8)
    trained, callback = len(model.trainable_weights), ke.callbacks.GradualUnfreezing(stages=STAGES)
    with pytest.raises(RuntimeError, match="no more"):
        fit(model, x, y, callbacks=[callback, Fail()])
    assert len(model.trainable_weights) < trained
    fit(model, x, y, callbacks=[callback])
    assert len(model.trainable_weights) == trained
    with pytest.raises(RuntimeError, match="no more"):
        fit(model, x, y, callbacks=[callback, Fail()])
    ke.peft.unfreeze(model)
    assert len(model.trainable_weights) == trained


def attentive(library, dropout=0.3):
    """A small model with dropout, attention and a norm."""
    layers = keras_of(library).layers
    ids = layers.Input((LENGTH,), dtype="int32")
    x = layers.Dropout(dropout)(layers.Embedding(VOCABULARY, 8, name="embed")(ids))
    x = layers.BatchNormalization(name="norm")(layers.GlobalAveragePooling1D()(x))
    return keras_of(library).Model(ids, layers.Dense(3, name="logits", dtype="float32")(x))


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_run_resumes_to_the_last_bit(library, tmp_path):
    """Stopped in the middle of the second stage, and in the third."""

    def callbacks():
        return (ke.callbacks.GradualUnfreezing(stages=["logits", "norm", "embed"]),)

    case = Case(library, callbacks=callbacks, model=attentive, epochs=4)
    whole = case.start(tmp_path / "whole")
    assert whole.history["stage"] == [0, 1, 2, 2]
    for at in ((1, 2), (2, 5)):
        assert_goes_on(case, tmp_path / f"stopped-{at}", at, whole)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [0, 1.5, True])
def test_bad_epochs(epochs):
    with pytest.raises(ValueError, match="`epochs_per_stage` must be an int >= 1"):
        ke.callbacks.GradualUnfreezing(epochs)


@pytest.mark.parametrize("stages", ["dense", ["dense"], []])
def test_bad_stages(stages):
    with pytest.raises(ValueError, match="`stages` must be a list of two or more"):
        ke.callbacks.GradualUnfreezing(stages=stages)


def test_stages_without_weights():
    with pytest.raises(ValueError, match="GradualUnfreezing's `stages` needs at least one weight"):
        run(
            SPECIMENS["keras-functional"],
            ke.callbacks.GradualUnfreezing(stages=["dense", "nothing"]),
        )


def test_a_model_without_numbered_layers():
    with pytest.raises(ValueError, match="give the callback `stages`"):
        run(SPECIMENS["keras-functional"], ke.callbacks.GradualUnfreezing())


def test_a_model_that_is_not_built():
    import keras

    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    callback = ke.callbacks.GradualUnfreezing(stages=["kernel", "bias"])
    callback.set_model(model)
    with pytest.raises(ke.InputError, match="GradualUnfreezing needs a built model"):
        callback.on_train_begin()
