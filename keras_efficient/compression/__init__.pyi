from ._calibrate import CalibrationReport as CalibrationReport, calibrate as calibrate
from ._cluster import ClusterReport as ClusterReport, cluster as cluster
from ._masks import Movement as Movement
from ._prune import PruneReport as PruneReport, prune as prune
from ._quantize_aware import (
    QuantizeAwareReport as QuantizeAwareReport,
    quantize_aware as quantize_aware,
)
from ._reconstruction import Reconstruction as Reconstruction
from ._sensitivity import Sensitivity as Sensitivity, sensitivity as sensitivity
from ._share_weights import SharingReport as SharingReport, share_weights as share_weights
from ._shrink import (
    ShrinkReport as ShrinkReport,
    ShrunkModel as ShrunkModel,
    shrink as shrink,
)
