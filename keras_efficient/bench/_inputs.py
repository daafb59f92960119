"""Arrays to time and to test exported models with."""

import os
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from keras_efficient._errors import InputError


def shaped(inputs, batch, length, path) -> dict:
    """`inputs` of a target with numbers for all sizes: {name: (dtype, shape)}.

    Raises:
        InputError: an input has another length, or is text.
    """
    shapes = {}
    for name, spec in inputs.items():
        dtype, shape = spec["dtype"], spec["shape"]
        if dtype not in ("bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))):
            if not dtype.startswith("float"):
                raise InputError(
                    f"Inputs are numbers. Received: {path}, whose input {name!r} is {dtype}. Name "
                    "a model that takes token ids."
                )
        elif len(shape) > 1 and shape[1] not in (None, length):
            raise InputError(
                f"A target must take the length it is timed at. Received: {path}, whose input "
                f"{name!r} has length {shape[1]}, and length {length}. Time it at {shape[1]}."
            )
        sizes = [batch, *shape[1:]]
        shapes[name] = dtype, tuple(length if n is None else n for n in sizes)
    return shapes


def synthetic(shapes, vocabulary) -> dict:
    """Token ids from 1 on, masks of ones, segments of zeros, normal floats; the same every time."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (dtype, shape) in shapes.items():
        if "mask" in name:
            array = np.ones(shape)
        elif "segment" in name or "type" in name:
            array = np.zeros(shape)
        elif dtype.startswith("float"):
            array = rng.normal(size=shape)
        else:
            array = rng.integers(1, vocabulary, shape)
        arrays[name] = array.astype(dtype)
    return arrays


def labelled(data) -> dict:
    """Labelled examples: arrays by name, with `labels`.

    Raises:
        InputError: no such file, or no labels, or other numbers of examples.
    """
    if isinstance(data, str | os.PathLike):
        try:
            with np.load(data) as file:
                arrays = dict(file)
        # (NumPy reads a damaged file with any of these.)
        except (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                "Labelled examples are an .npz file of arrays, made with np.savez. Received: "
                f"{data} ({reason})."
            ) from error
    elif isinstance(data, Mapping):
        arrays = {name: np.asarray(value) for name, value in data.items()}
    else:
        raise InputError(
            f"`data` must be the path of an .npz file or a dict of arrays. Received: {data!r}."
        )
    sizes = {name: value.shape[:1] for name, value in arrays.items()}
    labels = arrays.get("labels")
    whole = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels)
    if not whole or len(set(sizes.values())) > 1 or len(sizes) < 2:
        shown = {name: (str(v.dtype), v.shape) for name, v in arrays.items()}
        raise InputError(
            "Labelled examples are arrays by the names of the inputs, and `labels`, integers "
            f"[examples], at least one. Received (dtype and shape): {shown}."
        )
    return arrays
