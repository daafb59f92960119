from ._cosine import (
    cosine as cosine,
)
from ._cosine import (
    cosine_restarts as cosine_restarts,
)
from ._inverse_sqrt import (
    inverse_sqrt as inverse_sqrt,
)
from ._inverse_sqrt import (
    noam as noam,
)
from ._one_cycle import one_cycle as one_cycle
from ._polynomial import (
    exponential as exponential,
)
from ._polynomial import (
    linear as linear,
)
from ._polynomial import (
    polynomial as polynomial,
)
from ._schedule import Schedule as Schedule
from ._warmup import (
    warmup as warmup,
)
from ._warmup import (
    warmup_cosine as warmup_cosine,
)
from ._warmup import (
    warmup_linear as warmup_linear,
)
from ._wsd import (
    constant as constant,
)
from ._wsd import (
    wsd as wsd,
)
