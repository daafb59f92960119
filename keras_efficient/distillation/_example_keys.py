"""Keys of examples, by which their cached outputs are found whatever the batch."""

import hashlib
from typing import Any

import numpy as np

from keras_efficient.distillation._teacher import NAMES
from keras_efficient.training._batch_split import MASKS

#: What a feature of texts is called in a key, in all libraries.
_CANONICAL = {name: names[0] for names in NAMES for name in names}
_SEGMENTS = NAMES[2][0]


def named_features(x: Any) -> dict[str, np.ndarray]:
    """Return the features of a batch as arrays by name.

    Args:
        x: a dict, list or tuple of arrays or tensors, or one.
    """
    named: dict[str, Any]
    if isinstance(x, dict):
        named = {_CANONICAL.get(str(name), str(name)): value for name, value in x.items()}
    elif isinstance(x, list | tuple):
        named = {str(number): value for number, value in enumerate(x)}
    else:
        named = {"": x}
    return {name: np.asarray(named[name]) for name in sorted(named)}


def real_positions(features: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return which positions of a batch of texts are real, bool `[examples, tokens]`.

    By the mask among the features, or else up to the last token id that is not 0. None if there
    are no texts: no integers of two axes.
    """
    mask = features.get(_CANONICAL[MASKS[0]])
    if mask is not None:
        return mask.astype(bool)
    ids = features.get(NAMES[0][0])
    if ids is None:
        ids = next((v for v in features.values() if v.ndim == 2 and v.dtype.kind in "iu"), None)
    if ids is None:
        return None
    later = np.cumsum(ids[:, ::-1] != 0, axis=1)[:, ::-1]
    return later > 0


def example_keys(features: dict[str, np.ndarray]) -> list[bytes]:
    """Return a key of 16 bytes for each example, the hash of its features without padding.

    The key depends on neither the batch nor how far it is padded, and segments that are all 0 do
    not count.

    Args:
        features: as `named_features` returns them.
    """
    real = real_positions(features)
    count = len(next(iter(features.values())))
    digests = [hashlib.blake2b(digest_size=16) for _ in range(count)]
    for name, array in features.items():
        if name == _CANONICAL[MASKS[0]]:
            continue
        array = array.astype("<f4" if array.dtype.kind == "f" else "<i8")
        padded = real is not None and array.shape[:2] == real.shape
        for number, digest in enumerate(digests):
            row = array[number]
            if padded:
                row = row[real[number]]  # pyright: ignore[reportOptionalSubscript]
            if name == _SEGMENTS and not row.any():
                continue
            digest.update(f"{name} {row.shape}\n".encode() + row.tobytes())
    return [digest.digest() for digest in digests]
