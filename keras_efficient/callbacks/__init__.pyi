from ._adapt_on_plateau import AdaptOnPlateau as AdaptOnPlateau
from ._adaptive_sparsity import AdaptiveSparsity as AdaptiveSparsity
from ._batch_size_schedule import BatchSizeSchedule as BatchSizeSchedule
from ._batch_statistics import BatchStatistics as BatchStatistics
from ._ema import EMA as EMA
from ._find_learning_rate import (
    LearningRateReport as LearningRateReport,
    find_learning_rate as find_learning_rate,
)
from ._gradient_noise_scale import GradientNoiseScale as GradientNoiseScale
from ._gradient_norm import GradientNorm as GradientNorm
from ._gradual_unfreezing import GradualUnfreezing as GradualUnfreezing
from ._loss_scale import LossScale as LossScale
from ._progress import Progress as Progress, progress_bar as progress_bar
from ._progress_lines import ProgressLines as ProgressLines
from ._resume import Resume as Resume
from ._run_log import RunLog as RunLog
from ._throughput import Throughput as Throughput
