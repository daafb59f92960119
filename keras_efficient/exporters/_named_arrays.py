"""Convert the inputs of a request to NumPy arrays by name."""

from collections.abc import Mapping

import numpy as np

from keras_efficient._errors import InputError

#: Name of the input of a signature that takes strings.
TEXT = "text"


def named_arrays(inputs) -> dict:
    """Return arrays of numbers or strings by the names of a signature's inputs.

    Args:
        inputs: dict of arrays, tensors or lists by name, the batch first; or a list of strings,
            for an input called "text".

    Returns:
        dict of NumPy arrays. Strings have dtype object, since the dtypes "S" and "U" cut off
        trailing null characters.

    Raises:
        InputError: there are no inputs, or one is neither numbers nor strings or has no batch.
    """
    if not isinstance(inputs, Mapping):
        texts = isinstance(inputs, list | tuple) and all(isinstance(x, str) for x in inputs)
        if not texts or not inputs:
            raise InputError(
                "A request's inputs must be a dict of arrays by name, or a list of strings. "
                f"Received: {type(inputs).__name__}. Give for example ['a fine film']."
            )
        inputs = {TEXT: inputs}
    if not inputs:
        raise InputError(
            "A request must have an input. Received: none. Give arrays by the signature's names."
        )
    return {name: _array(name, value) for name, value in inputs.items()}


def _array(name, value):
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SUO":
            array = np.asarray(value, dtype=object)
    except ValueError:
        array = None
    strings = array is not None and array.dtype.kind == "O"
    if (
        array is None
        or array.dtype.kind not in "biufO"
        or array.ndim == 0
        or not array.size
        or (strings and not all(isinstance(item, str | bytes) for item in array.flat))
    ):
        what = "rows of several lengths"
        if array is not None:
            what = f"dtype {array.dtype} and shape {array.shape}"
        raise InputError(
            "Each input of a request must be numbers or strings, the batch first. Received: input "
            f"{name!r} with {what}. Give a batch, if only of one, and pad its rows."
        )
    return array
