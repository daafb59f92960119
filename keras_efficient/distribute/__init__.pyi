from ._cluster import (
    Cluster as Cluster,
    is_chief as is_chief,
)
from ._communication import Communication as Communication
from ._shard import shard as shard
from ._strategy import strategy as strategy
