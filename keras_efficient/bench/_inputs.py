"""Synthetic inputs for timing exported models, and labelled examples for their accuracy."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_efficient._errors import InputError

_INTEGERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def resolve_shapes(
    inputs: Mapping[str, Any], batch: int, length: int, path
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return `{name: (dtype, shape)}` of a model's inputs, with numbers for the open sizes.

    Args:
        inputs: {name: {"dtype", "shape"}}, where a size that is open is None.
        batch: number of examples.
        length: number of tokens.
        path: path of the model, for messages.

    Raises:
        InputError: an input has another fixed length, or is not numeric.
    """
    shapes = {}
    for name, spec in inputs.items():
        dtype, shape = spec["dtype"], spec["shape"]
        if dtype not in _INTEGERS:
            if not dtype.startswith("float"):
                raise InputError(
                    f"Inputs must be numeric. Received: {path}, whose input {name!r} is {dtype}. "
                    "Name a model that takes token ids."
                )
        elif len(shape) > 1 and shape[1] not in (None, length):
            raise InputError(
                f"A target must accept the length it is timed at. Received: {path}, whose input "
                f"{name!r} has length {shape[1]}, and length {length}. Time it at {shape[1]}."
            )
        sizes = [batch, *shape[1:]]
        shapes[name] = dtype, tuple(length if n is None else n for n in sizes)
    return shapes


def synthetic_inputs(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], vocabulary: int, mixed: bool = False
) -> dict[str, Any]:
    """Return arrays of these dtypes and shapes, the same at every call.

    Masks are ones, segment ids zeros, other integers token ids from 1 to `vocabulary - 1`, and
    floats normally distributed.

    Args:
        shapes: `{name: (dtype, shape)}`.
        vocabulary: number of token ids.
        mixed: whether masks are ones for a part of each example only, evenly drawn between a
            quarter and all of it, and for all of the first one. Default: False.
    """
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (dtype, shape) in shapes.items():
        if "mask" in name:
            array = np.ones(shape)
            if mixed and len(shape) > 1:
                ends = np.random.default_rng(1).uniform(0.25, 1, shape[0]) * shape[1]
                ends[0] = shape[1]
                array *= np.arange(shape[1]) < np.ceil(ends)[:, None]
        elif "segment" in name or "type" in name:
            array = np.zeros(shape)
        elif dtype.startswith("float"):
            array = rng.normal(size=shape)
        else:
            array = rng.integers(1, vocabulary, shape)
        arrays[name] = array.astype(dtype)
    return arrays


def load_examples(data) -> dict[str, Any]:
    """Return labelled examples as arrays by name, one of them `labels`.

    Args:
        data: path of an .npz file, or dict of arrays.

    Raises:
        InputError: the file cannot be read, `labels` is missing or not integers [examples], or
            the arrays differ in their number of examples.
    """
    if isinstance(data, str | os.PathLike):
        try:
            with np.load(data) as file:
                arrays = dict(file)
        # NumPy raises any of these for a damaged file.
        except (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                "Labelled examples must be an .npz file of arrays, made with np.savez. Received: "
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
    valid = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels)
    if not valid or len(set(sizes.values())) > 1 or len(sizes) < 2:
        shown = {name: (str(v.dtype), v.shape) for name, v in arrays.items()}
        raise InputError(
            "Labelled examples must be arrays named like the inputs, and `labels`, integers "
            f"[examples], at least one. Received (dtype and shape): {shown}."
        )
    return arrays
