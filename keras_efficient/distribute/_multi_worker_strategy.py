"""`MultiWorkerStrategy`, the strategy that `ke.strategy` returns for several workers."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from keras_efficient.distribute._cluster import Cluster
from keras_efficient.distribute._shard import shard


class MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """`MultiWorkerMirroredStrategy` that divides each global batch exactly.

    Keras 3 models created in its scope train, evaluate, predict and save, which they do not under
    TensorFlow's own class; see `Flavor.enable_multi_worker`.

    Args:
        cluster: `Cluster`, the workers and this process's place among them.
        communication_options: `tf.distribute.experimental.CommunicationOptions`. Default: None,
            TensorFlow's default.

    Attributes:
        cluster: the `Cluster`.
    """

    def __init__(
        self,
        cluster: Cluster,
        communication_options: tf.distribute.experimental.CommunicationOptions | None = None,
    ):
        job, index = cluster.task
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster.spec),
            task_type=job,
            task_id=index,
            rpc_layer="grpc",
            # Listing logical devices here would initialise TensorFlow, too early for collectives.
            num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
        )
        super().__init__(resolver, communication_options)
        self.cluster = cluster
        # Called eagerly, TensorFlow would trace a new function for each gather.
        self._gather_rows = tf.function(lambda row: self.gather(row, axis=0), autograph=False)

    def experimental_distribute_dataset(self, dataset, options=None):
        """Distribute a dataset of global batches; see `tf.distribute.Strategy` and `shard`."""
        return super().experimental_distribute_dataset(shard(dataset), options)

    def gather_arrays(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Gather NumPy arrays from all workers in a single collective.

        Args:
            arrays: arrays whose shapes and dtypes are the same on every worker.

        Returns:
            For each array, one of shape `[workers, ...]`, in the order of the workers.
        """
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        words = np.frombuffer(data + bytes(-len(data) % 4), np.int32)
        rows = self._gather_rows(tf.constant(words[None])).numpy()
        gathered, start = [], 0
        for array in map(np.asarray, arrays):
            parts = [row.tobytes()[start : start + array.nbytes] for row in rows]
            shape = (len(rows), *array.shape)
            gathered.append(np.frombuffer(b"".join(parts), array.dtype).reshape(shape))
            start += array.nbytes
        return gathered

    def agree(self, value: bool, rule: Callable[[Iterable], bool]) -> bool:
        """Reduce a bool over all workers.

        Args:
            value: this worker's value.
            rule: `any` or `all`.

        Returns:
            The same bool on every worker.
        """
        (values,) = self.gather_arrays([np.array([bool(value)])])
        return bool(rule(values.ravel()))
