"""Save a run's snapshots, and warn of what could not be saved instead of ending the training."""

import secrets
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

import keras_efficient
from keras_efficient import flavor as flavors
from keras_efficient._errors import listed
from keras_efficient.checkpoint._array_file import check_dtypes
from keras_efficient.checkpoint._position import Position
from keras_efficient.checkpoint._replica_values import ReplicaValues
from keras_efficient.checkpoint._run_lock import RunLock
from keras_efficient.checkpoint._snapshot import Snapshot
from keras_efficient.checkpoint._store import CheckpointStore, StoredCheckpoint
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
        keep: number of checkpoints that stay, and in addition the last one with finite weights.
        stop_on_nan: whether weights that are not finite end the training.
        writes: whether this process writes; other workers only take part in collectives.
    """

    def __init__(
        self, model: Any, store: CheckpointStore, *, keep: int, stop_on_nan: bool, writes: bool
    ):
        self.model, self.store, self.keep, self.writes = model, store, keep, writes
        self.stop_on_nan = stop_on_nan
        self.run = secrets.token_hex(8)
        self._lock: RunLock | None = None
        #: The checkpoints of this run, oldest first, and whether their weights are finite.
        self._own: dict[str, bool] = {}
        self._replaced: list[str] = []
        self._warned: set = set()

    def open(self):
        """Check the run's folder, and own it until `close`.

        Raises:
            InputError: it cannot be used, or another process is using it.
        """
        if not self.writes:
            return
        self.close()
        self.store.check()
        self._lock = RunLock(self.store.directory, self.run)
        self._lock.acquire()
        self.store.remove_partial()

    def close(self):
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def begin(self, checkpoint: StoredCheckpoint | None):
        """Distinguish this run's checkpoints from others, deleted only by `overwrite=True`.

        Args:
            checkpoint: where the run resumes, whose checkpoints become this run's. The first save
                replaces later ones, which are corrupt or not finite. None starts a new run, and
                the first save replaces all that there are now.
        """
        if not self.writes:
            return
        names = self.store.names()
        if checkpoint is None:
            self._replaced = names
            return
        run = checkpoint.state.get("run")
        self.run = run or self.run
        states = {name: self.store.read_state(name) for name in names}
        mine = [n for n, state in states.items() if not state or state.get("run") == run]
        end = mine.index(checkpoint.path.name) + 1
        self._replaced = mine[end:]
        self._own = {name: states[name].get("finite", bool(states[name])) for name in mine[:end]}

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

        Raises:
            FloatingPointError: with `stop_on_nan`, if weights are not finite; nothing is written.
            InputError: another process has taken over the folder.
        """
        self._warn_of_unsupported(snapshot.unsupported)
        finite = self._check_finite(position)
        libraries = keras_efficient, tf, flavors.of(self.model).keras
        state = {
            "epoch": position.epoch,
            "step": position.step,
            "total": position.total,
            **state,
            "run": self.run,
            "finite": finite,
            "versions": {library.__name__: library.__version__ for library in libraries},
            **snapshot.state,
        }
        try:
            # A step is saved once, for instance before a validation that is then given up.
            if self.writes and position.name not in self._own:
                if self._lock is not None:
                    self._lock.check()
                self.store.delete(self._replaced)
                self._replaced = []
                self.store.write(position.name, snapshot.specs, snapshot.read, state)
                self._own[position.name] = finite
                self._prune()
        except OSError as error:
            if self.store.read_state(position.name).get("run") == self.run:
                # It was written, but not its folder's entry to the disk.
                self._own[position.name] = finite
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

    def _check_finite(self, position):
        """Return whether the weights are finite; warn or raise if they are not."""
        wrong = _not_finite(self.model)
        if not wrong:
            return True
        text = f"Weights are NaN or infinite after {position.total} steps: {listed(wrong, 3)}."
        good = next((name for name in reversed(self._own) if self._own[name]), None)
        text += f" The last save before that, {good}, is kept." if good else ""
        if self.stop_on_nan:
            raise FloatingPointError(
                f"{text} Lower the learning rate, clip gradients or check the data, and start "
                "again."
            )
        if "nan" not in self._warned:
            self._warned.add("nan")
            warnings.warn(
                f"{text} Training continues; Resume(stop_on_nan=True) stops it instead.",
                stacklevel=4,
            )
        return False

    def _prune(self):
        """Delete this run's checkpoints but the last ones and the last finite one."""
        kept = [*self._own][-self.keep :]
        finite = [name for name, finite in self._own.items() if finite]
        kept += finite[-1:]
        self.store.delete(name for name in self._own if name not in kept)
        self._own = {name: finite for name, finite in self._own.items() if name in kept}

    def _warn_of_unsupported(self, attributes):
        new = [name for name in attributes if name not in self._warned]
        if new:
            self._warned |= {*new}
            warnings.warn(
                "The state of callbacks must consist of numbers, strings, arrays, lists or dicts "
                f"to be saved. Received other values in {', '.join(new)}: they are left out.",
                stacklevel=4,
            )


def _not_finite(model: Any) -> list[str]:
    """Return the names of the trainable weights that hold NaN or infinity."""
    value = flavors.of(model).value
    weights = [v for v in map(value, model.trainable_variables) if v.dtype.is_floating]
    found = [tf.reduce_all(tf.math.is_finite(weight)) for weight in weights]
    return [weight.name for weight, finite in zip(weights, found, strict=True) if not finite]


def plain_logs(logs: Any) -> Any:
    """Return a step's logs as JSON values, with their numbers to the last bit."""
    if isinstance(logs, dict):
        return {name: plain_logs(value) for name, value in logs.items()}
    return np.asarray(logs).tolist()
