"""Layers that Keras lacks, for either library."""

from keras_efficient.lazy import lazily

_HOMES = {
    "MaskedBatchNormalization": "keras_efficient.layers.batch_normalization",
    "custom_objects": "keras_efficient.layers.batch_normalization",
    "masked_moments": "keras_efficient.layers.moments",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
