from ._cosine import (
    cosine as cosine,
    cosine_restarts as cosine_restarts,
)
from ._inverse_sqrt import (
    inverse_sqrt as inverse_sqrt,
    noam as noam,
)
from ._one_cycle import one_cycle as one_cycle
from ._polynomial import (
    exponential as exponential,
    linear as linear,
    polynomial as polynomial,
)
from ._schedule import Schedule as Schedule
from ._warmup import (
    warmup as warmup,
    warmup_cosine as warmup_cosine,
    warmup_linear as warmup_linear,
)
from ._wsd import (
    constant as constant,
    wsd as wsd,
)
