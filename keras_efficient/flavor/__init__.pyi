from ._callback import Callback as Callback
from ._flavor import Flavor as Flavor
from ._library import (
    LIBRARIES as LIBRARIES,
    get as get,
    of as of,
)
from ._typing import (
    Dataset as Dataset,
    Layer as Layer,
    Model as Model,
    Optimizer as Optimizer,
    Tensor as Tensor,
    Variable as Variable,
)
