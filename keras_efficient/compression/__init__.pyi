from ._calibrate import calibrate as calibrate
from ._cluster import cluster as cluster
from ._masks import Movement as Movement
from ._prune import (
    PruneReport as PruneReport,
)
from ._prune import (
    prune as prune,
)
from ._quantize_aware import quantize_aware as quantize_aware
from ._reconstruction import Reconstruction as Reconstruction
from ._sensitivity import sensitivity as sensitivity
from ._share_weights import share_weights as share_weights
