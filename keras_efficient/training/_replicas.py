"""Per-replica variables, all-reduce and conditions, as the training step uses tf.distribute."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute.distribute_lib import _DefaultDistributionExtended


def count() -> int:
    """Return the number of replicas that train together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def distributed() -> bool:
    """Return whether a strategy other than TensorFlow's default one is entered.

    This, and not the number of replicas, decides how variables are made and updated: a strategy
    of one replica has a cross-replica context and per-replica variables too.
    """
    return tf.distribute.has_strategy()


def trains_distributed(model: Any) -> bool:
    """Return whether `fit` runs the steps of `model` in the replicas of a strategy."""
    strategy: Any = model.distribute_strategy
    # TensorFlow has no public name for its default strategy, the one of a fresh graph's context.
    return not isinstance(strategy.extended, _DefaultDistributionExtended)


def on_tpu(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Return whether a strategy, by default the present one, trains on a TPU."""
    kinds = tf.distribute.TPUStrategy, tf.distribute.experimental.TPUStrategy
    return isinstance(strategy or tf.distribute.get_strategy(), kinds)


def variable(value, dtype=None) -> tf.Variable:
    """Create a variable with a separate value on every replica, read as their sum from outside.

    Call it outside of a graph, in the scope of the strategy.
    """
    return tf.Variable(
        value,
        dtype=dtype,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def local(variable: Any) -> Any:
    """Return this replica's component of `variable`, a `tf.Variable` that takes sparse updates.

    On a TPU it is `variable` itself, which takes none: see `add_rows`.
    """
    strategy = tf.distribute.get_strategy()
    # The replicas of a TPU are traced once, for all.
    if not distributed() or on_tpu(strategy):
        return variable
    parts = strategy.experimental_local_results(variable)
    return parts[index() % len(parts)]


def add_rows(variable: Any, rows: tf.IndexedSlices):
    """Add `IndexedSlices` to a variable that `local` returned."""
    if isinstance(variable, tf.distribute.DistributedValues):
        # A TPU's. TensorFlow implements no scatter for it.
        total = tf.math.unsorted_segment_sum(rows.values, rows.indices, variable.shape[0])
        variable.assign_add(total, read_value=False)
    else:
        variable.scatter_add(rows)


def index() -> int:
    """Return the index of this replica, from 0."""
    return tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)


def all_sum(values: list) -> list:
    """Return the sums over replicas of tensors and `IndexedSlices`, in one all-reduce."""
    if count() == 1:
        return values
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def gathered(values: list) -> tuple[list, Any]:
    """Return the rows of all replicas, in the order of replicas, and where this one's begin.

    Args:
        values: tensors `[rows, ...]` with the same number of rows, which may differ by replica.
    """
    if count() == 1:
        return values, 0
    context: Any = tf.distribute.get_replica_context()
    numbers = context.all_gather(tf.shape(values[0])[:1], axis=0)
    here = context.replica_id_in_sync_group
    return context.all_gather(values, axis=0), tf.reduce_sum(numbers[:here])


def row(value):
    """Return `value` as this replica's row of zeros `[replicas, ...]`, whose sum holds all rows."""
    here = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.tensordot(tf.one_hot(here, count(), dtype=value.dtype), value, 0)


def cond(condition, function: Callable, *args):
    """Call `function(*args)`, which may synchronise replicas, where `condition` holds.

    Args:
        condition: scalar bool tensor, equal on all replicas.
        function: called in replica context. It must not capture tensors of its caller, since each
            replica has its own.
        args: nests of tensors, `IndexedSlices` and None.
    """
    if not distributed() or _no_merge_call():
        tf.cond(condition, lambda: _done(function, *args), lambda: False)
        return

    # An optimizer cannot synchronise inside a replica's condition (tensorflow#27716). So leave
    # the replicas, decide once for all of them, and enter them again.
    def decide(strategy, condition, args):
        def enter():
            strategy.extended.call_for_each_replica(function, args=args)
            return True

        tf.cond(strategy.experimental_local_results(condition)[0], enter, lambda: False)

    tf.distribute.get_replica_context().merge_call(decide, args=(condition, args))


def _no_merge_call():
    return tf.__internal__.distribute.strategy_supports_no_merge_call()


def _done(function, *args):
    function(*args)
    return True
