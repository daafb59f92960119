from ._adalora import (
    AdaLoRAReport as AdaLoRAReport,
    adalora as adalora,
)
from ._adapters import adapters as adapters
from ._bitfit import bitfit as bitfit
from ._call_wrappers import CallWrapperReport as CallWrapperReport
from ._freeze import (
    freeze as freeze,
    unfreeze as unfreeze,
)
from ._load_adapters import load_adapters as load_adapters
from ._lora import (
    LoRADelta as LoRADelta,
    lora as lora,
)
from ._prefix_tuning import prefix_tuning as prefix_tuning
from ._report import TuningReport as TuningReport
from ._save_adapters import (
    AdapterFileReport as AdapterFileReport,
    save_adapters as save_adapters,
)
from ._switch_adapters import (
    SwitchReport as SwitchReport,
    switch_adapters as switch_adapters,
)
