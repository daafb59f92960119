from ._keep_float32 import keep_float32 as keep_float32
from ._mixed_precision import (
    Precision as Precision,
    mixed_precision as mixed_precision,
)
