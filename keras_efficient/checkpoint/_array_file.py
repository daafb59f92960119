"""Write and read named NumPy arrays as a safetensors file, bfloat16 included."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient._errors import InputError

#: `{array's name: (shape, dtype)}`.
Specs = dict[str, tuple[tuple, Any]]

#: The safetensors names of NumPy's and ml_dtypes' dtypes.
_CODES = {
    "bool": "BOOL",
    **{
        f"{'u' * (kind == 'U')}int{bits}": f"{kind}{bits}"
        for kind in "IU"
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
}


def check_dtypes(specs: Specs):
    """Refuse arrays that the file format cannot hold.

    Raises:
        InputError: a dtype is not a number of NumPy's, bool or bfloat16.
    """
    wrong = [f"{name} ({dtype})" for name, (_, dtype) in specs.items() if dtype.name not in _CODES]
    if wrong:
        raise InputError(
            f"A checkpoint holds variables of these dtypes: {', '.join(_CODES)}. Received: "
            f"{', '.join(wrong[:3])}. Keep variables of other dtypes out of the model's state."
        )


def write_arrays(path: Path, specs: Specs, read: Callable[[str], np.ndarray]) -> tuple[str, int]:
    """Write the arrays one after the other, so that only one is in memory at a time.

    Args:
        path: the file.
        specs: shape and dtype of each array.
        read: function of a name that returns the array.

    Returns:
        The file's SHA-256 digest and its size in bytes.
    """
    header, offset = {}, 0
    for name, (shape, dtype) in specs.items():
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": _CODES[dtype.name],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for block in (len(text).to_bytes(8, "little"), text, *specs):
            if isinstance(block, str):
                block = np.ascontiguousarray(read(block)).reshape(-1).view(np.uint8).data
            file.write(block)
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a file into memory. The NumPy reader of safetensors has no bfloat16."""
    import ml_dtypes

    raw = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    dtypes = {code: getattr(ml_dtypes, n, None) or np.dtype(n) for n, code in _CODES.items()}
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = raw[start + begin : start + end].view(dtypes[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays
