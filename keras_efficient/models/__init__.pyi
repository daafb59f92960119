from ._encoder_decoder import encoder_decoder as encoder_decoder
from ._info import info as info
from ._load import (
    LoadedModel as LoadedModel,
    load as load,
)
from ._save import save as save
from ._trained_folder import TrainedModelInfo as TrainedModelInfo
