"""Several devices and workers: choose a strategy, describe a cluster, share data, launch."""

from keras_efficient.lazy import lazily

_HOMES = {
    "Cluster": "keras_efficient.distribute.cluster",
    "Communication": "keras_efficient.distribute.choosing",
    "is_chief": "keras_efficient.distribute.cluster",
    "share": "keras_efficient.distribute.sharding",
    "strategy": "keras_efficient.distribute.choosing",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
