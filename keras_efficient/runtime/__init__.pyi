from ._tune_process import (
    TuneProcessReport as TuneProcessReport,
    tune_process as tune_process,
)
