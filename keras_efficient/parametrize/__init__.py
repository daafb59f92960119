"""One view of a weight: chains of transforms on any weight of a built model.

A weight is seen through: low-rank delta → cluster look-up → pruning mask → fake quantization. The
verbs in `compress` and `tuning` attach such transforms; `merge` folds them into plain weights.
"""

from keras_efficient.lazy import lazily

_HOMES = {
    "Transform": "keras_efficient.parametrize.transform",
    "Weight": "keras_efficient.parametrize.weights",
    "attach": "keras_efficient.parametrize.attaching",
    "detach": "keras_efficient.parametrize.attaching",
    "folded": "keras_efficient.parametrize.plain",
    "merge": "keras_efficient.parametrize.merging",
    "select": "keras_efficient.parametrize.weights",
    "summary": "keras_efficient.parametrize.summarising",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
