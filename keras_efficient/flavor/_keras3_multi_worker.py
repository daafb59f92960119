"""Fixes for Keras 3's `fit` on several replicas and workers."""

from typing import Any

import tensorflow as tf

# There are no public hooks for `fit` on several workers.
from keras.src.backend.tensorflow import trainer as _trainer

#: Names by which `fit` and `evaluate` ask for the mean of the replicas' logs.
_MEANS = ("auto", "mean")
_Trainer: Any = _trainer.TensorFlowTrainer


def enable_multi_worker(strategy_class: type) -> None:
    """Make `fit` work for models under this class of strategies on several workers (trap 17).

    Replaces Keras' symbolic build before the first step and its reduction of the replicas' logs.
    """
    plain_build, plain_reduce = _Trainer._maybe_symbolic_build, _trainer.reduce_per_replica

    def build(model, iterator=None, data_batch=None):
        plain = plain_build.__get__(model)
        if not isinstance(model._distribute_strategy, strategy_class):
            return plain(iterator=iterator, data_batch=data_batch)
        return build_from_replica_spec(model, plain, iterator, data_batch)

    def reduce(values, strategy, reduction):
        if not isinstance(strategy, strategy_class) or reduction not in _MEANS:
            return plain_reduce(values, strategy, reduction)
        return _mean_over_workers(values, strategy)

    _Trainer._maybe_symbolic_build, _trainer.reduce_per_replica = build, reduce


def build_from_replica_spec(
    model: Any, plain: Any, iterator: Any = None, data_batch: Any = None
) -> Any:
    """Call Keras' `_maybe_symbolic_build` with the spec of one replica's share of a batch.

    Keras averages the first batch over replicas to learn its shape. This fails if the shares
    differ, as for a first batch of one example, and on several workers (traps 16 and 17). The
    iterator that Keras creates for it also advances a reshuffled dataset to its second order.
    """
    if model._distribute_strategy is not None and iterator is not None:
        specification = iterator._distributed_dataset.element_spec
        data_batch = tf.nest.map_structure(_of_one_replica, specification)
    return plain(data_batch=data_batch)


def _of_one_replica(spec):
    spec = getattr(spec, "_value_specs", (spec,))[0]
    # Keras wraps None as an optional.
    return None if isinstance(spec, tf.OptionalSpec) else spec


def _mean_over_workers(values, strategy):
    """Average a nest of scalars over all replicas with one collective operation."""
    leaves = [strategy.experimental_local_results(v) for v in tf.nest.flatten(values)]
    means: Any = tf.stack(
        [tf.add_n([tf.cast(v, tf.float32) for v in local]) / len(local) for local in leaves]
    )
    means = tf.unstack(strategy.reduce("SUM", means, axis=None) / len(strategy.cluster))
    return tf.nest.pack_sequence_as(values, means)
