from ._adafactor import Adafactor as Adafactor
from ._adamw import AdamW as AdamW
from ._custom_objects import custom_objects as custom_objects
from ._describe import describe as describe
from ._lamb import LAMB as LAMB
from ._layer_depths import layer_depths as layer_depths
from ._lion import Lion as Lion
from ._param_groups import (
    NO_DECAY as NO_DECAY,
    ParamGroup as ParamGroup,
)
from ._sgd import SGD as SGD
