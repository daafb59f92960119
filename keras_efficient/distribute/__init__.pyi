from ._cluster import (
    Cluster as Cluster,
)
from ._cluster import (
    is_chief as is_chief,
)
from ._shard import shard as shard
from ._strategy import (
    Communication as Communication,
)
from ._strategy import (
    strategy as strategy,
)
