"""Helpers of the `Resume` tests: a run that is stopped, and the same run started again."""

import contextlib
import json
import shutil

import numpy as np
import tensorflow as tf
from fit_helpers import compiled, mirrored
from zoo import CLASSES, LENGTH, VOCABULARY, Specimen, keras_of

import keras_efficient as ke

IDS = Specimen("ids", "keras", None, lambda x: x)


class Stop(Exception):
    """Ends a run, as a kill would as far as that is possible within a process."""


class Watch(ke.flavor.Callback):
    """Records the loss and the updates of every trained step; ends the run at one of them."""

    def __init__(self, at=None):
        self.at, self.losses, self.updates, self.calls = at, {}, [], 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.calls += 1
        self.losses[self.epoch, batch] = np.asarray(logs["loss"]).item()
        self.updates.append(int(ke.flavor.of(self.model).optimizer(self.model).iterations.numpy()))
        if (self.epoch, batch) == self.at:
            raise Stop


def model_of(library, dropout=0.3):
    """A small model with dropout and running statistics."""
    keras = keras_of(library)
    layers = keras.layers
    parts = [
        layers.Input((LENGTH,), dtype="int32"),
        layers.Embedding(VOCABULARY, 8),
        layers.Dropout(dropout),
        layers.GlobalAveragePooling1D(),
        layers.BatchNormalization(),
        layers.Dense(CLASSES, dtype="float32"),
    ]
    return keras.Sequential(parts)


def plain(model):
    return model


def dataset(examples=23, size=4):
    """Finite, with a ragged last batch, in another order in every epoch."""
    data = tf.data.Dataset.from_tensor_slices(IDS.batch(examples))
    return data.shuffle(examples).batch(size)


def held_out():
    return tf.data.Dataset.from_tensor_slices(IDS.batch(9, seed=1)).batch(4)


class Case:
    """A training script, whose parts are made again at every start."""

    def __init__(self, library, caller=plain, callbacks=tuple, data=dataset, **kwargs):
        self.library, self.caller, self.callbacks, self.data = library, caller, callbacks, data
        self.replicas = kwargs.pop("replicas", 1)
        # XLA would take most of the tests' time.
        self.compile = {"jit_compile": False, **kwargs.pop("compile", {})}
        self.model, self.resume = kwargs.pop("model", model_of), kwargs.pop("resume", {})
        self.validation = kwargs.pop("validation", None)
        self.fit = {"epochs": 2, "verbose": 0, **kwargs}

    def start(self, directory, at=None, seed=0, **kwargs):
        """Run the script, up to the step `at`; returns its `Run`."""
        keras = keras_of(self.library)
        keras.utils.set_random_seed(seed)
        # Without garbage collection, which takes longer than the training.
        keras.backend.clear_session(**({"free_memory": False} if self.library == "keras" else {}))
        rate = ke.schedules.warmup_cosine(0.05, warmup_steps=2, total_steps=30)
        with mirrored(self.replicas).scope():
            optimizer = ke.optimizers.AdamW(rate, library=self.library)
            model = compiled(self.library, self.model(self.library), optimizer, **self.compile)
        model = self.caller(model) or model
        watch, others = Watch(at), list(self.callbacks())
        resume = ke.callbacks.Resume(directory, **{"every_steps": 2, **self.resume})
        callbacks = [resume, watch, *others]
        data = self.data()
        data = dict(data) if isinstance(data, dict) else {"x": data}
        if self.validation is not None:
            data["validation_data"] = self.validation()
        with contextlib.suppress(Stop):
            model.fit(**data, **{**self.fit, **kwargs}, callbacks=callbacks)
        return Run(model, watch, resume, others)

    def whole(self, folder):
        """Run the script to its end, and keep all of its checkpoints."""
        resume, self.resume = self.resume, {**self.resume, "keep": 99}
        try:
            return self.start(folder)
        finally:
            self.resume = resume


class Run:
    """A run that has ended: model, recorded steps, `Resume` and the other callbacks."""

    def __init__(self, model, watch, resume, others):
        self.model, self.watch, self.resume, self.others = model, watch, resume, others
        self.history = model.history.history
        self.epochs = model.history.epoch


def stopped_copy(whole, folder, at, keep=2):
    """Create the folder that a run leaves if it is killed at the step `at`, from a whole run's.

    Args:
        whole: a `Run` that kept all of its checkpoints.
        folder: path of the copy.
        at: (epoch, batch) of the step that is trained last and not saved any more.
        keep: number of checkpoints kept.
    """
    store = whole.resume.store
    names = []
    for name in store.names():
        state = json.loads((store.directory / name / "state.json").read_text())
        if (state["epoch"], state["step"]) <= at:
            names.append(name)
    for name in names[-keep:]:
        shutil.copytree(store.directory / name, folder / name)
    state = json.loads((folder / names[-1] / "state.json").read_text())
    return state["epoch"], state["step"]


def assert_goes_on(case, folder, at, whole):
    """Stopped after step `at` and started again, a run is the `whole` one to the last bit."""
    if whole.resume.keep > 2:
        saved = stopped_copy(whole, folder, at)
        losses = {place: loss for place, loss in whole.watch.losses.items() if place < saved}
    else:
        stopped = case.start(folder, at)
        saved, losses = (stopped.resume.epoch, stopped.resume.step), stopped.watch.losses
    again = case.start(folder)
    assert again.watch.losses.items() <= whole.watch.losses.items()
    first = min(again.watch.losses)
    assert first[0] == saved[0]
    # Every step was trained: those up to the save by the first, the others by the second.
    assert {**losses, **again.watch.losses} == whole.watch.losses
    # And none twice, according to the optimizer.
    assert again.watch.updates == whole.watch.updates[-len(again.watch.updates) :]
    assert len(again.watch.updates) == again.watch.calls
    assert_equal(again, whole)
    return again


def assert_equal(run, whole):
    """Two runs have the same history and the same weights, to the last bit."""
    assert run.history == whole.history, (run.history, whole.history)
    assert run.epochs == whole.epochs
    for a, b in zip(run.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
