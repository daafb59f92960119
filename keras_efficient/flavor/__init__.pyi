from ._base import Flavor as Flavor
from ._callback import Callback as Callback
from ._library import (
    LIBRARIES as LIBRARIES,
)
from ._library import (
    get as get,
)
from ._library import (
    of as of,
)
