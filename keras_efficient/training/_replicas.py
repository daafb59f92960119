"""What the training step needs of tf.distribute: its replica, and the others."""

import tensorflow as tf


def count() -> int:
    """The number of replicas that train together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def variable(value, dtype=None):
    """A variable of which every replica has its own, read as their sum from outside.

    To be created outside of a graph, in the strategy's scope.
    """
    return tf.Variable(
        value,
        dtype=dtype,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def local(variable):
    """This replica's own part of `variable`, a `tf.Variable` that also takes sparse updates."""
    strategy = tf.distribute.get_strategy()
    # A TPU's replicas are traced once, for all.
    if count() == 1 or isinstance(strategy, tf.distribute.TPUStrategy):
        return variable
    parts = strategy.experimental_local_results(variable)
    return parts[index() % len(parts)]


def index() -> int:
    """Which replica this is, from 0."""
    return tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)


def all_sum(values):
    """The sums over replicas of a list of tensors and `IndexedSlices`, in one all-reduce."""
    if count() == 1:
        return values
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def cond(condition, function, *args):
    """Run `function(*args)`, which may synchronise replicas, where `condition` holds.

    Args:
        condition: scalar bool tensor, the same in every replica.
        function: called in replica context, must not close over tensors of its caller (each
            replica has others).
        args: nests of tensors, `IndexedSlices` and None.
    """
    if not tf.distribute.has_strategy() or _no_merge_call():
        tf.cond(condition, lambda: _done(function, *args), lambda: False)
        return

    # Inside a replica's own condition no optimizer can synchronise (tensorflow#27716): leave the
    # replicas, decide once for all of them, and enter them again.
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
