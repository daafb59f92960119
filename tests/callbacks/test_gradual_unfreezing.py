"""Gradual unfreezing: what trains in which epoch, the optimizer's state, and resumed runs."""

import numpy as np
import pytest
from covering import contract, sampled
from fit_helpers import compiled, fit, mirrored
from resumed_runs import Case, assert_goes_on
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO, Specimen, fixed, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.flavor import Callback
from keras_efficient.parametrize import _attach as attach
from keras_efficient.training import _train_step_hook as train_step_hook

SPECIMENS = {specimen.name: specimen for specimen in ZOO}


def numbered(library):
    """A small model with a head, one numbered layer and embeddings."""
    layers = keras_of(library).layers

    def make():
        ids = layers.Input((None,), dtype="int32", name="ids")
        x = layers.Embedding(VOCABULARY, 8, name="embeddings")(ids)
        x = layers.Dense(8, activation="relu", name="layer_0")(x)
        x = layers.Dense(CLASSES, name="logits")(layers.GlobalAveragePooling1D()(x))
        return fixed(keras_of(library).Model(ids, x))

    return Specimen(f"{library}-numbered", library, make, lambda x: x)


LIBRARIES = ("keras", "tf_keras")
SMALL = [numbered(library) for library in LIBRARIES]
BERTS = [
    pytest.param(SPECIMENS[name], marks=pytest.mark.full)
    for name in ("kerashub-bert", "hugging-face-bert", "model-garden-bert")
]
TWO = BERTS[:2]
#: Of the small model.
STAGES = ["logits", "layer_0", "embedding"]


def values(model):
    return [weight.value.numpy() for weight in all_weights(model)]


class Moved(Callback):
    """Records which weights each epoch moved."""

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
    """Return the numbers of the weights with these paths."""
    return {n for n, weight in enumerate(all_weights(model)) if weight.path in paths}


@sampled()
@pytest.mark.parametrize("specimen", [*SMALL, *BERTS], ids=repr)
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
    # After `fit`, everything is trainable as before.
    plain = specimen.make()
    assert len(model.trainable_weights) == len(plain.trainable_weights)
    assert moved.trainable[:3] == [len(head), len(head | block), len(plain.trainable_weights)]
    assert not attach.parametrized_layers(model)


@sampled()
@pytest.mark.parametrize("specimen", SMALL, ids=repr)
def test_given_stages(specimen):
    callback = ke.callbacks.GradualUnfreezing(2, STAGES)
    model, moved, history = run(specimen, callback, epochs=5)
    stages = [places(model, paths) for paths in callback.paths]
    assert history["stage"] == [0, 0, 1, 1, 2]
    for epoch, stage in enumerate(history["stage"]):
        free = set().union(*stages[: stage + 1])
        assert moved.epochs[epoch] & stages[stage] and moved.epochs[epoch] <= free


@sampled()
@pytest.mark.parametrize("specimen", [*SMALL, *TWO], ids=repr)
def test_when_all_train_at_once_it_is_a_plain_fit(specimen):
    """The first stage has everything in it: the same run as without the callback."""
    everything = ke.callbacks.GradualUnfreezing(stages=["", "bias"])
    ours, _, history = run(specimen, everything, epochs=2)
    plain, _, expected = run(specimen, Callback(), epochs=2)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    for a, b in zip(values(ours), values(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def slots(model):
    own = model.optimizer.variables
    return [np.asarray(v) for v in (own() if callable(own) else own)]


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("specimen", [*SMALL, *TWO], ids=repr)
def test_the_optimizer_keeps_its_state(specimen):
    """Adam's moments of the head stay when a block joins, and its counter counts all updates."""

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
    optimizer = keras_of(specimen.library).optimizers.Adam(0.01)
    compiled(specimen.library, model, optimizer, jit_compile=False)
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


@contract("replicas")
@sampled()
@pytest.mark.parametrize("specimen", [*SMALL, *TWO], ids=repr)
def test_two_replicas_are_one(specimen):
    one, *_ = run(specimen, ke.callbacks.GradualUnfreezing(), epochs=3)
    two, moved, _ = run(specimen, ke.callbacks.GradualUnfreezing(), epochs=3, replicas=2)
    for a, b in zip(values(one), values(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(moved.epochs[0]) < len(moved.epochs[2])


@contract("xla")
@sampled()
@pytest.mark.parametrize("specimen", SMALL, ids=repr)
def test_xla(specimen):
    ours = []
    for jit in (False, True):
        callback = ke.callbacks.GradualUnfreezing(stages=STAGES[:2])
        ours.append(run(specimen, callback, epochs=2, jit_compile=jit)[0])
    for a, b in zip(*map(values, ours), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("specimen", SMALL, ids=repr)
def test_with_an_average_a_window_and_validation(specimen):
    x, y = specimen.batch(16)
    model = compiled(specimen.library, specimen.make(), jit_compile=False)
    callbacks = [
        ke.callbacks.GradualUnfreezing(stages=STAGES),
        ke.callbacks.BatchSizeSchedule({0: 3}),
        ke.callbacks.EMA(0.9),
    ]
    history = fit(model, x, y, batch_size=4, epochs=3, callbacks=callbacks, validation_data=(x, y))
    assert history["stage"] == [0, 1, 2] and len(history["val_loss"]) == 3
    assert int(model.optimizer.iterations) == 6


@pytest.mark.parametrize(
    "specimen, train",
    [
        (SMALL[0], "layer_0"),
        pytest.param(SPECIMENS["kerashub-bert"], "pool", marks=pytest.mark.full),
    ],
)
def test_beside_lora(specimen, train):
    """What is frozen already stays so; the deltas train from the start."""
    callback = ke.callbacks.GradualUnfreezing(stages=["logits", ""])
    layers = "embeddings|logits" if specimen is SMALL[0] else None
    model, moved, _ = run(
        specimen,
        callback,
        epochs=2,
        caller=lambda m: ke.lora(m, 2, **({"layers": layers} if layers else {}), train=train),
    )
    assert callback.paths[0] == [] and all(train in path for path in callback.paths[1])
    assert moved.epochs[0] == set()
    assert moved.epochs[1] == places(model, callback.paths[1])
    assert all(t.b.numpy().any() for t in attach.transforms(model))


def test_a_second_fit_continues():
    specimen = SMALL[0]
    callback = ke.callbacks.GradualUnfreezing(stages=STAGES)
    model, *_ = run(specimen, callback, epochs=2)
    x, y = specimen.batch(16)
    history = fit(model, x, y, epochs=4, initial_epoch=2, callbacks=[callback])
    assert history["stage"] == [2, 2]
    assert train_step_hook.of(model) is None


@sampled()
@pytest.mark.parametrize("specimen", SMALL, ids=repr)
def test_after_a_fit_that_failed(specimen):
    class Fail(Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("no more")

    model = compiled(specimen.library, specimen.make(), jit_compile=False)
    x, y = specimen.batch(8)
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


def normalised(library, dropout=0.3):
    """A small model with dropout and a norm."""
    layers = keras_of(library).layers
    ids = layers.Input((LENGTH,), dtype="int32")
    x = layers.Dropout(dropout)(layers.Embedding(VOCABULARY, 8, name="embed")(ids))
    x = layers.BatchNormalization(name="norm")(layers.GlobalAveragePooling1D()(x))
    return keras_of(library).Model(ids, layers.Dense(3, name="logits", dtype="float32")(x))


@contract("resume")
@sampled()
@pytest.mark.parametrize(
    "library, at, how",
    [
        ("keras", (1, 2), {}),
        ("tf_keras", (2, 5), {"run_eagerly": True}),
        pytest.param("keras", (2, 5), {}, marks=pytest.mark.full),
        pytest.param("tf_keras", (1, 2), {}, marks=pytest.mark.full),
    ],
)
def test_a_run_resumes_to_the_last_bit(library, at, how, tmp_path):
    """Stopped in the middle of the second stage, or in the third."""

    def callbacks():
        return (ke.callbacks.GradualUnfreezing(stages=["logits", "norm", "embed"]),)

    case = Case(library, callbacks=callbacks, model=normalised, epochs=4, compile=how)
    whole = case.whole(tmp_path / "whole")
    assert whole.history["stage"] == [0, 1, 2, 2]
    assert_goes_on(case, tmp_path / "stopped", at, whole)


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
            SMALL[0],
            ke.callbacks.GradualUnfreezing(stages=["logits", "nothing"]),
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
