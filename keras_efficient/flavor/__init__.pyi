from ._callback import Callback as Callback
from ._flavor import Flavor as Flavor
from ._library import (
    LIBRARIES as LIBRARIES,
)
from ._library import (
    get as get,
)
from ._library import (
    of as of,
)
from ._typing import (
    Dataset as Dataset,
)
from ._typing import (
    Layer as Layer,
)
from ._typing import (
    Model as Model,
)
from ._typing import (
    Optimizer as Optimizer,
)
from ._typing import (
    Tensor as Tensor,
)
from ._typing import (
    Variable as Variable,
)
