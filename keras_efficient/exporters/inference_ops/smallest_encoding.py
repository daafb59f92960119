"""`smallest_encoding`: the form of an array that takes the fewest bytes in a SavedModel."""

import numpy as np

from keras_efficient.exporters.inference_ops.bitmap import Bitmap
from keras_efficient.exporters.inference_ops.codebook import codebook, codebook_of_columns
from keras_efficient.exporters.inference_ops.encoding import Encoding, Plain

#: An array is stored as it is, unless another form saves this many bytes and this share of them.
_BYTES, _SHARE = 4096, 0.2


def smallest_encoding(array: np.ndarray, part: str = "values") -> Encoding:
    """Return an array as it is, as a `Codebook`, or as a `Bitmap`; zeros lose their sign.

    Args:
        array: float or int8 array of any shape.
        part: name of the array if it is stored as it is. Default: "values".
    """
    if array.nbytes < _BYTES:
        return Plain(array, part)
    array = np.ascontiguousarray(array)
    # Where a mask is multiplied with a negative number, the zero is negative.
    array = np.where(array == 0, np.zeros((), array.dtype), array)
    found: list[Encoding] = [_without_bitmap(array)]
    if array.dtype == np.int8 and array.ndim == 2:
        found.append(codebook_of_columns(array) or found[0])
    if np.count_nonzero(array) < 0.75 * array.size:
        found.append(Bitmap(array, _without_bitmap))
    best = min(found, key=lambda encoding: encoding.bytes)
    saved = array.nbytes - best.bytes
    enough = saved >= max(_BYTES, _SHARE * array.nbytes)
    return best if enough else Plain(array, part)


def _without_bitmap(array):
    found, plain = codebook(array), Plain(array)
    return found if found is not None and found.bytes < plain.bytes else plain
