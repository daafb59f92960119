from ._create import create as create
from ._generate_text import generate_text as generate_text
from ._info import info as info
from ._load import (
    LoadedModel as LoadedModel,
    load as load,
)
from ._save import save as save
from ._trained_folder import TrainedModelInfo as TrainedModelInfo
