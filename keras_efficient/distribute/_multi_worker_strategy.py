"""TensorFlow's strategy for several workers, as `ke.strategy` hands it out."""

import numpy as np
import tensorflow as tf

from keras_efficient.distribute._shard import shard


class MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """`MultiWorkerMirroredStrategy` that divides each global batch exactly.

    Models of Keras 3 made in its scope train, evaluate, predict and save (`flavor.keras3`), which
    they do not under TensorFlow's class itself.

    Attributes:
        cluster: the `Cluster` this process is part of.
    """

    def __init__(self, cluster, communication_options=None):
        kind, index = cluster.task
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster.spec),
            task_type=kind,
            task_id=index,
            rpc_layer="grpc",
            # (Asking for logical devices would start TensorFlow, too early for collectives.)
            num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
        )
        super().__init__(resolver, communication_options)
        self.cluster = cluster
        # (Called eagerly, TensorFlow traces a function anew each time.)
        self._rows = tf.function(lambda row: self.gather(row, axis=0), autograph=False)

    def experimental_distribute_dataset(self, dataset, options=None):
        """See `tf.distribute.Strategy`; the batches are those of one process."""
        return super().experimental_distribute_dataset(shard(dataset), options)

    def gather_arrays(self, arrays):
        """Each NumPy array of a list as `[workers, ...]`, from all workers in their order.

        The shapes and dtypes must be the same everywhere. One collective carries them all.
        """
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        words = np.frombuffer(data + bytes(-len(data) % 4), np.int32)
        rows = self._rows(tf.constant(words[None])).numpy()
        gathered, start = [], 0
        for array in map(np.asarray, arrays):
            parts = [row.tobytes()[start : start + array.nbytes] for row in rows]
            shape = (len(rows), *array.shape)
            gathered.append(np.frombuffer(b"".join(parts), array.dtype).reshape(shape))
            start += array.nbytes
        return gathered

    def agree(self, value, rule) -> bool:
        """What `rule` (`any` or `all`) makes of every worker's bool."""
        (values,) = self.gather_arrays([np.array([bool(value)])])
        return bool(rule(values.ravel()))
