"""Keep a training run on disk, and take it up again."""

import json
import os
import shutil
from pathlib import Path

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.checkpoint._store import check_settings, sync
from keras_efficient.distribute._cluster import cluster_of
from keras_efficient.flavor import Callback


class Checkpoint(Callback):
    """Save weights and optimizer every so many updates and at every epoch's end.

    A save is written beside the last one and renamed over it: a run killed while saving keeps the
    one before. Only plain variables and a little JSON are stored. `Resume` does more, by itself:
    this one leaves it to the script where the data starts.

    Args:
        directory: where to keep the checkpoint.
        every_steps: int, updates between saves within an epoch; None (default) saves at epoch
            ends only.
        settings: dict of JSON values that a resumed run must share (model, data, batch size);
            `restore` refuses another run's checkpoint.

    Attributes:
        epoch, step: int, whole epochs done, and updates made in the epoch after them, as of
            `restore` or the last save.

    Example:
        >>> checkpoint = ke.callbacks.Checkpoint("runs/a")
        >>> if checkpoint.exists():
        ...     checkpoint.restore(model)
        >>> model.fit(
        ...     dataset.repeat(),
        ...     steps_per_epoch=2,
        ...     initial_epoch=checkpoint.epoch,
        ...     epochs=3,
        ...     callbacks=[checkpoint],
        ... )

        Let the dataset start at the epoch it resumes: `ke.data.text(..., first_epoch=...)`.
        (A `fit` without `repeat` may start a dataset more than once an epoch, and so pass over
        orders: Keras 3 does.)
    """

    def __init__(self, directory, *, every_steps=None, settings=None):
        self.directory = Path(directory)
        self.every_steps = every_steps
        self.settings = settings or {}
        self.epoch = self.step = 0

    def exists(self):
        """Whether there is a checkpoint to take up."""
        return self._find() is not None

    def restore(self, model):
        """Load the checkpoint into a compiled `model` and set `epoch` and `step`.

        Raises:
            InputError: there is none, it is of another run, or it is damaged.
        """
        found = self._find()
        if found is None:
            raise InputError(
                f"There must be a checkpoint to resume. Received: {str(self.directory)!r} without "
                "one. Start the run without --resume."
            )
        try:
            state = json.loads((found / "state.json").read_text())
        except ValueError as error:
            raise self._damaged(found, error) from error
        check_settings(state["settings"], self.settings)
        try:
            variables = _variables(model)
            tf.train.Checkpoint(variables=variables).read(
                str(found / "variables")
            ).assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError, IndexError) as error:
            raise self._damaged(found, error) from error
        self.epoch, self.step = state["epoch"], state["step"]

    def set_model(self, model):
        if cluster_of(model) is not None:
            raise InputError(
                "Checkpoint is for one process: several workers would write the same files. "
                "Received: a model under ke.strategy on several workers. Use ke.callbacks.Resume."
            )
        self.model = model
        self._resumed_step, self._batch, self._epoch = self.step, self.step, self.epoch
        self._updates = self._now()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batch = epoch, self._resumed_step
        self._resumed_step = 0

    def on_train_batch_end(self, batch, logs=None):
        self._batch += 1
        self._updates = self._now()
        if self.every_steps and self._batch % self.every_steps == 0:
            self.save(self._epoch, self._batch)

    def on_epoch_end(self, epoch, logs=None):
        self.save(epoch + 1, 0)

    def save_now(self):
        """Save wherever an interrupted `fit` stands, if it has made an update."""
        if self.model is None or self._now() == 0:
            return
        # The interrupt may have come between an update and the hook that counts it.
        self.save(self._epoch, self._batch + self._now() - self._updates)

    def _now(self):
        return int(self.model.optimizer.iterations.numpy())

    def save(self, epoch, step):
        """Write the state after `epoch` whole epochs and `step` updates of the next."""
        self.directory.mkdir(parents=True, exist_ok=True)
        new = self.directory / ".new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        tf.train.Checkpoint(variables=_variables(self.model)).write(str(new / "variables"))
        state = {"epoch": epoch, "step": step, "settings": self.settings}
        (new / "state.json").write_text(json.dumps(state))
        sync(new)
        # Two renames, and `_find` knows the name in between. Without a "last", the save before was
        # killed there, and ".old" is all there is.
        if (self.directory / "last").exists():
            shutil.rmtree(self.directory / ".old", ignore_errors=True)
            os.rename(self.directory / "last", self.directory / ".old")
        os.rename(new, self.directory / "last")
        shutil.rmtree(self.directory / ".old", ignore_errors=True)
        self.epoch, self.step = epoch, step

    def remove(self):
        """Delete the checkpoint: the run is done."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _damaged(self, found, error):
        return InputError(
            f"The checkpoint must fit the model and be whole. Received: {str(found)!r} "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}). Delete it and start anew."
        )

    def _find(self):
        for name in ("last", ".old"):
            if (self.directory / name / "state.json").exists():
                return self.directory / name
        return None


def _variables(model):
    """Everything that changes in training, as plain variables in a fixed order."""
    flavor = flavors.of(model)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    variables = [*flavor.state(model), *map(flavor.value, optimizer.variables)]
    return list({id(variable): variable for variable in variables}.values())
