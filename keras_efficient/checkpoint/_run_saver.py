"""Save a run's snapshots, and warn of what could not be saved instead of ending the training."""

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

import keras_efficient
from keras_efficient import flavor as flavors
from keras_efficient.checkpoint._array_file import check_dtypes
from keras_efficient.checkpoint._position import Position
from keras_efficient.checkpoint._replica_values import ReplicaValues
from keras_efficient.checkpoint._snapshot import Snapshot
from keras_efficient.checkpoint._store import CheckpointStore
from keras_efficient.checkpoint._variables import (
    build_optimizer,
    create_variables,
    run_variables,
)


class RunSaver:
    """Writes the checkpoints of one `fit`.

    Args:
        model: the model that `fit` trains.
        store: the run's `CheckpointStore`.
        keep: number of checkpoints that stay.
        overwrite: whether the first checkpoint replaces those of an earlier run.
        writes: whether this process writes; other workers only take part in collectives.
    """

    def __init__(
        self, model: Any, store: CheckpointStore, *, keep: int, overwrite: bool, writes: bool
    ):
        self.model, self.store, self.keep, self.writes = model, store, keep, writes
        self._clear_first = overwrite
        self._warned: set = set()

    def prepare(self, spec: Any, *, resumed: bool):
        """Create the variables to save or restore, before the first step.

        Args:
            spec: nest of the specs of a batch.
            resumed: whether all variables must exist already, to be restored.
        """
        model = self.model
        with model.distribute_strategy.scope():
            if resumed or not model.built:
                create_variables(model, spec)
            else:
                build_optimizer(model)
                flavors.of(model).random_state(model)

    def check(self, *, finished: bool):
        """Refuse variables that cannot be saved, or a disk without space for the checkpoints.

        Args:
            finished: whether the run is complete and will not be saved again.
        """
        values = ReplicaValues(self.model.distribute_strategy, run_variables(self.model))
        check_dtypes(values.specs())
        if self.writes and not finished:
            self.store.check_free_space(values.nbytes, self.keep)

    def save(self, snapshot: Snapshot, position: Position, **state: Any) -> bool:
        """Write a checkpoint.

        Args:
            snapshot: what to write.
            position: where the run is.
            state: further JSON values.

        Returns:
            Whether it was written.
        """
        self._warn_of_unsupported(snapshot.unsupported)
        libraries = keras_efficient, tf, flavors.of(self.model).keras
        state = {
            "epoch": position.epoch,
            "step": position.step,
            "total": position.total,
            **state,
            "versions": {library.__name__: library.__version__ for library in libraries},
            **snapshot.state,
        }
        try:
            if self.writes:
                if self._clear_first:
                    self.store.clear()
                self._clear_first = False
                self.store.write(position.name, snapshot.specs, snapshot.read, state)
                self.store.prune(position.name, self.keep)
        except OSError as error:
            if error.errno not in self._warned:
                self._warned.add(error.errno)
                last = (self.store.names() or ["the start"])[-1]
                warnings.warn(
                    f"The run could not be saved after {position.total} steps: {error}. Training "
                    "continues, and the next save is tried again; until then a killed run resumes "
                    f"from {last}.",
                    stacklevel=3,
                )
            return False
        return True

    def _warn_of_unsupported(self, attributes):
        new = [name for name in attributes if name not in self._warned]
        if new:
            self._warned |= {*new}
            warnings.warn(
                "The state of callbacks must consist of numbers, strings, arrays, lists or dicts "
                f"to be saved. Received other values in {', '.join(new)}: they are left out.",
                stacklevel=4,
            )


def plain_logs(logs: Any) -> Any:
    """Return a step's logs as JSON values, with their numbers to the last bit."""
    if isinstance(logs, dict):
        return {name: plain_logs(value) for name, value in logs.items()}
    return np.asarray(logs).tolist()
