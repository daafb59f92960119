from . import (
    architecture as architecture,
    bench as bench,
    callbacks as callbacks,
    checkpoint as checkpoint,
    compression as compression,
    data as data,
    distillation as distillation,
    distribute as distribute,
    dtype_policies as dtype_policies,
    exporters as exporters,
    flavor as flavor,
    generation as generation,
    layers as layers,
    losses as losses,
    metrics as metrics,
    models as models,
    optimizers as optimizers,
    parametrize as parametrize,
    peft as peft,
    pipelines as pipelines,
    runtime as runtime,
    schedules as schedules,
    serving as serving,
    tasks as tasks,
    training as training,
    versions as versions,
)
from ._errors import InputError as InputError
from .callbacks import find_learning_rate as find_learning_rate
from .compression import (
    calibrate as calibrate,
    cluster as cluster,
    prune as prune,
    quantize_aware as quantize_aware,
    share_weights as share_weights,
    shrink as shrink,
)
from .distillation import distill as distill
from .distribute import strategy as strategy
from .dtype_policies import mixed_precision as mixed_precision
from .exporters import export as export
from .parametrize import merge as merge, summary as summary
from .peft import (
    adalora as adalora,
    adapters as adapters,
    bitfit as bitfit,
    load_adapters as load_adapters,
    lora as lora,
    prefix_tuning as prefix_tuning,
    save_adapters as save_adapters,
    switch_adapters as switch_adapters,
)
from .pipelines import compress as compress
from .runtime import tune_process as tune_process
from .training import (
    accumulate as accumulate,
    adversarial as adversarial,
    consistency as consistency,
    contrastive as contrastive,
    ewc as ewc,
    pack as pack,
    remat as remat,
    sam as sam,
    unpad as unpad,
)

__version__: str
