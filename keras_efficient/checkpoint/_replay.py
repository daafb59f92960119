"""Redraw the batches before a checkpoint without training, and restore the run there."""

from collections.abc import Iterator
from typing import Any, NoReturn

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.checkpoint._position import Position
from keras_efficient.checkpoint._snapshot import restore_snapshot
from keras_efficient.checkpoint._store import StoredCheckpoint
from keras_efficient.training._data_checksum import DataChecksum


class Replay:
    """The part of a resumed `fit` up to its checkpoint, in which data is drawn but not trained on.

    Args:
        model: the model that `fit` trains.
        checkpoint: where the run continues.
        epochs: the epochs that `fit` is given.
        checksum: the run's `DataChecksum`; None does not verify the data.

    Attributes:
        state: dict, the checkpoint's state.
        finished: bool, whether the run is complete, so that nothing is drawn or trained.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: StoredCheckpoint,
        epochs: int,
        checksum: DataChecksum | None,
    ):
        self.model, self.checkpoint, self.checksum = model, checkpoint, checksum
        self.state = state = checkpoint.state
        complete = state["complete"] and epochs <= state["epochs"]
        self.finished = complete or state["epoch"] >= epochs
        self._update_checksum = None

    def describe(self, steps_per_epoch: int | None) -> str:
        """Return a line that says where the run continues."""
        directory, state = self.checkpoint.path.parent, self.state
        if self.finished:
            return f"{directory} is complete after {state['epoch']} epochs: nothing to train."
        of = f" of {steps_per_epoch}" if steps_per_epoch else ""
        return (
            f"Resuming {directory} at epoch {state['epoch'] + 1}, step {state['step']}{of}; "
            f"drawing {state['total']} batches again."
        )

    def check_first_epoch(self, epoch: int):
        """Refuse another `initial_epoch` than that of the first start.

        Raises:
            InputError: it differs.
        """
        if self.state["first_epoch"] != epoch:
            raise InputError(
                "A run resumes with the `initial_epoch` it was started with; epochs trained since "
                f"are skipped by Resume itself. Received: initial_epoch={epoch}, where it was "
                f"{self.state['first_epoch']}. Pass the same value."
            )

    def check_steps(self, steps_per_epoch: int | None):
        """Refuse to take a run for complete that was trained with shorter or longer epochs.

        Raises:
            InputError: the data is verified, and its number of batches differs.
        """
        saved = self.state.get("steps_per_epoch")
        if not self.finished or self.checksum is None or None in (saved, steps_per_epoch):
            return
        if saved != steps_per_epoch:
            raise InputError(
                "A resumed run must see the data it was started with. Received: data of "
                f"{steps_per_epoch} steps per epoch, where {self.checkpoint.path.parent} is "
                f"complete after epochs of {saved}. Give `fit` the same data, or start a new run "
                "in another folder. If the data differs on purpose, use "
                "Resume(..., check_data=False)."
            )

    def reached(self, position: Position) -> bool:
        """Whether the data has been drawn up to the checkpoint."""
        return (position.epoch, position.step) == (self.state["epoch"], self.state["step"])

    def draw(self, iterator: Iterator, position: Position):
        """Draw the batches of one call of the train function, and advance `position`.

        Raises:
            StopIteration: there is none left.
            InputError: the checkpoint lies within the batches of the call.
        """
        steps = flavors.of(self.model).steps_per_execution(self.model)
        for drawn in range(steps):
            try:
                data = next(iterator)
            except StopIteration:
                if not drawn:
                    raise
                break
            if self.checksum is not None:
                self._add_to_checksum(data)
        position.advance(steps)
        if position.epoch == self.state["epoch"] and position.step > self.state["step"]:
            raise InputError(
                "A run resumes with the `steps_per_execution` it was started with. Received: "
                f"{steps}, which does not divide step {self.state['step']}, where it was saved. "
                "Compile the model as before."
            )

    def restore(self, callbacks: list):
        """Verify that the data is the same, and restore model and callbacks.

        Raises:
            InputError: data, model, optimizer or training step differ.
        """
        expected = self.state["data"]
        if self.checksum is not None and expected is not None and not self.finished:
            found = self.checksum.read()
            if found != expected:
                raise InputError(
                    "A resumed run must see the data it was started with. Received: batches whose "
                    f"checksum after {self.state['total']} steps is {found}, where it was "
                    f"{expected}. Seed the shuffling: keras.utils.set_random_seed(...) before the "
                    "dataset is made, or shuffle(seed=...). If the data differs on purpose, use "
                    "Resume(..., check_data=False)."
                )
        restore_snapshot(self.model, callbacks, self.checkpoint)

    def raise_data_ended(self, position: Position) -> NoReturn:
        """Refuse data that ended before the checkpoint.

        Raises:
            InputError: always.
        """
        raise InputError(
            "A resumed run must see the data it was started with. Received: data that ended at "
            f"step {position.step} of epoch {position.epoch + 1}, where the run was saved at step "
            f"{self.state['step']} of epoch {self.state['epoch'] + 1}. Give `fit` the same data."
        )

    def _add_to_checksum(self, data):
        if self._update_checksum is None:
            # The function does not refer to `self`: a cycle would keep the checkpoint's file open.
            strategy, checksum = self.model.distribute_strategy, self.checksum
            self._update_checksum = tf.function(
                lambda data: strategy.run(checksum, (data,)),
                reduce_retracing=True,
                autograph=False,
            )
        # Keras 3 passes a missing part of a batch as an Optional.
        missing = tf.experimental.Optional
        self._update_checksum(
            tf.nest.map_structure(lambda leaf: None if isinstance(leaf, missing) else leaf, data)
        )
