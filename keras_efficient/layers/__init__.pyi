from ._batch_normalization import (
    MaskedBatchNormalization as MaskedBatchNormalization,
    custom_objects as custom_objects,
)
from ._moments import masked_moments as masked_moments
