"""Parameter-efficient tuning: train little of a model, as views of its weights."""

from keras_efficient.lazy import lazily

_HOMES = {
    "LowRank": "keras_efficient.tuning.low_rank",
    "Tuned": "keras_efficient.tuning.training",
    "adalora": "keras_efficient.tuning.rank_budget",
    "adapters": "keras_efficient.tuning.bottlenecks",
    "bitfit": "keras_efficient.tuning.biases",
    "freeze": "keras_efficient.tuning.freezing",
    "load_adapters": "keras_efficient.tuning.adapter_loading",
    "lora": "keras_efficient.tuning.low_rank",
    "prefix": "keras_efficient.tuning.prefixes",
    "save_adapters": "keras_efficient.tuning.adapter_files",
    "switch_adapters": "keras_efficient.tuning.switching",
    "unfreeze": "keras_efficient.tuning.freezing",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
