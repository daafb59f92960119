"""Values of variables as arrays, with those of all replicas where they may differ."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.checkpoint._array_file import Specs

#: Variables of which every replica has a copy, not a share: each counts the batches of a window.
_COPIES = ("step.window_seen", "step.window_unit", "step.dirty")


class ReplicaValues:
    """Named variables as arrays: each replica's values stacked where they may differ, else one.

    Args:
        strategy: the model's `tf.distribute.Strategy`.
        variables: dict {name: tf.Variable}.
    """

    def __init__(self, strategy: tf.distribute.Strategy, variables: dict[str, tf.Variable]):
        self.strategy, self.variables = strategy, variables
        self.cluster = getattr(strategy, "cluster", None)
        self.stacked = {name: self._may_differ(name, v) for name, v in variables.items()}
        self._gathered: dict[str, np.ndarray] = {}

    def gather(self):
        """Fetch the values of other workers' replicas, before the first `read`.

        A collective: all workers must call it.
        """
        names = [name for name in self.variables if self.stacked[name]]
        if self.cluster is None or not names:
            return
        own = [np.stack([p.numpy() for p in self._parts(self.variables[name])]) for name in names]
        strategy: Any = self.strategy
        for name, array in zip(names, strategy.gather_arrays(own), strict=True):
            self._gathered[name] = array.reshape(-1, *array.shape[2:])

    def specs(self) -> Specs:
        """Return the shape and NumPy dtype of what `read` returns, by name."""
        replicas = self.strategy.num_replicas_in_sync
        return {
            name: (
                (*([replicas] if self.stacked[name] else []), *v.shape),
                np.dtype(v.dtype.as_numpy_dtype),
            )
            for name, v in self.variables.items()
        }

    @property
    def nbytes(self) -> int:
        """Number of bytes of all arrays."""
        sizes = [np.prod(shape, dtype=np.int64) * t.itemsize for shape, t in self.specs().values()]
        return int(sum(sizes))

    def read(self, name: str) -> np.ndarray:
        """Return a variable's value, `[replicas, ...]` if replicas may differ."""
        if name in self._gathered:
            return self._gathered[name]
        parts = self._parts(self.variables[name])
        if not self.stacked[name]:
            return parts[0].numpy()
        return np.stack([part.numpy() for part in parts])

    def assign(self, name: str, value: Any) -> int | None:
        """Assign a value that `read` returned, in this run or one with other replicas.

        Returns:
            The number of replicas it was read from; None if it is the number of this run.
        """
        variable, value = self.variables[name], np.asarray(value)
        parts, replicas = self._parts(variable), self.strategy.num_replicas_in_sync
        if value.ndim == variable.shape.rank:
            # The value of a single replica, or one that all have in common.
            value = value[None] if self.stacked[name] else np.stack([value] * replicas)
        saved = len(value)
        if saved != replicas:
            value = redistribute(variable, value, replicas, copies=name in _COPIES)
        first = 0 if self.cluster is None else self.cluster.index * len(parts)
        for part, its in zip(parts, value[first : first + len(parts)], strict=True):
            part.assign(its)
        return None if saved == replicas else saved

    def _parts(self, variable):
        """Return the variable's component on each replica of this process."""
        return self.strategy.experimental_local_results(variable)

    def _may_differ(self, name, variable):
        """Whether replicas may hold different values."""
        if self.strategy.num_replicas_in_sync == 1:
            return False
        if variable.synchronization == tf.VariableSynchronization.ON_READ:
            return True
        # Nothing keeps the copies of Keras 3's running statistics and seeds equal.
        if variable.trainable or not name.startswith(("weights.", "random.")):
            return False
        if self.cluster is not None:
            return True
        first, *others = (part.numpy() for part in self._parts(variable))
        return not all(np.array_equal(first, other) for other in others)


def redistribute(
    variable: tf.Variable, values: np.ndarray, replicas: int, *, copies: bool
) -> np.ndarray:
    """Distribute the values of some replicas over another number of them.

    Args:
        variable: the variable, whose aggregation says what is preserved: the mean or the sum.
        values: array `[saved replicas, ...]`.
        replicas: number of replicas now.
        copies: whether every replica gets the first value instead.

    Returns:
        Array `[replicas, ...]`.
    """
    if copies or variable.synchronization != tf.VariableSynchronization.ON_READ:
        return np.stack([values[0]] * replicas)
    if variable.aggregation == tf.VariableAggregation.MEAN:
        return np.stack([values.mean(0).astype(values.dtype)] * replicas)
    total = values.sum(0, dtype=values.dtype)
    share = total // replicas if values.dtype.kind in "iu" else total / replicas
    share = np.asarray(share, values.dtype)
    return np.stack([total - share * (replicas - 1), *[share] * (replicas - 1)])
