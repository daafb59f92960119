from ._batch_normalization import (
    MaskedBatchNormalization as MaskedBatchNormalization,
    custom_objects as custom_objects,
)
from ._estimate_batch_statistics import estimate_batch_statistics as estimate_batch_statistics
from ._moments import masked_moments as masked_moments
