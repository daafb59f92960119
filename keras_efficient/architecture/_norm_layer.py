"""Normalization layers of all libraries: their scale, offset and epsilon."""

from typing import Any

from keras_efficient.architecture._layer_class import has_library_call, original_class
from keras_efficient.flavor import Layer

#: T5's normalization divides by the root mean square, and has no offset.
_RMS = "TFT5LayerNorm.call"


def is_rms_norm(layer: Layer) -> bool:
    """Return whether a normalization divides by the root mean square, and subtracts no mean."""
    return has_library_call(layer, _RMS)


def norm_weights(layer: Layer) -> tuple[Any, Any, float]:
    """Return the scale, the offset or None, and the epsilon of a normalization."""
    if is_rms_norm(layer):
        return layer.weight, None, layer.variance_epsilon
    return layer.gamma, layer.beta, layer.epsilon


def reason_not_known(layer: Layer) -> str | None:
    """Return why the arithmetic of a normalization is not known, or None."""
    if is_rms_norm(layer):
        return None
    if not has_library_call(layer, "LayerNormalization.call"):
        return f"its norm {layer.name!r} is a {original_class(layer).__name__}"
    axis = layer.axis if isinstance(layer.axis, int) else tuple(layer.axis)[-1]
    plain = layer.gamma is not None and layer.beta is not None
    if not plain or axis not in (-1, 2) or getattr(layer, "rms_scaling", False):
        return f"its norm {layer.name!r} has other settings than scale and offset"
    return None
