"""TensorFlow's strategy for several workers, as `ke.strategy` hands it out."""

import tensorflow as tf

from keras_efficient.distribute.sharding import share


class Workers(tf.distribute.MultiWorkerMirroredStrategy):
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

    def experimental_distribute_dataset(self, dataset, options=None):
        """See `tf.distribute.Strategy`; the batches are those of one process."""
        return super().experimental_distribute_dataset(share(dataset), options)

    def wait_for_all(self):
        """Return when every worker has come here."""
        self.reduce("SUM", tf.constant(1.0), axis=None)
