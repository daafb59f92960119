from ._load import (
    LoadedModel as LoadedModel,
    load as load,
)
