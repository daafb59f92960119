from ._load import (
    LoadedModel as LoadedModel,
)
from ._load import (
    load as load,
)
