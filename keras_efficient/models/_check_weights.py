"""`check_weight_files`: check the headers of a folder's weight files without reading their data."""

from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.data._read_json import check_file, read_json

#: dtypes of weights in safetensors files. Integers are accepted for these buffers only.
_FLOATS = ("F16", "BF16", "F32", "F64")
_BUFFERS = (
    "position_ids",
    "token_type_ids",
    "attn.bias",
    "attn.masked_bias",
    "num_batches_tracked",
)
_MAX_BYTES = 2**50


def safetensors_files(path: Path) -> list[Path]:
    """Return the safetensors files of a folder; none if its weights have another format.

    Raises:
        InputError: The index of several files is malformed, or names one outside the folder.
    """
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    return _indexed(path / "model.safetensors.index.json")


def _indexed(index: Path, *, several: bool = False) -> list[Path]:
    """Return the files of its folder that an index names; none without an index.

    With `several`, a name may have a list of files, as Keras writes it.
    """
    if not index.exists():
        return []
    names = read_json(index, "the list of weight files").get("weight_map")
    names = list(names.values()) if isinstance(names, dict) else []
    if several:
        names = [name for n in names for name in (n if isinstance(n, list) else [n])]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{index.name} must map the names of weights to files. Received: {str(index)!r}, which "
            "does not. Download it again."
        )
    names = sorted(set(names))
    for name in names:
        if name != Path(name).name or "\\" in name or "\0" in name or not name.isprintable():
            raise InputError(
                f"{index.name} may only name files of its folder. Received: {name[:200]!r} in "
                f"{str(index)!r}. Do not use this folder."
            )
    return [index.with_name(name) for name in names]


def check_weight_files(path: Path) -> int:
    """Check the weight files of a folder by their headers; returns their size in bytes.

    Raises:
        InputError: A file is missing, truncated or without weights, a weight is no float, or its
            values are not in the file.
    """
    files = safetensors_files(path)
    for file in files:
        _check_safetensors(file)
    # Keras opens whatever its index names.
    others = sorted({*path.glob("*.h5"), *_indexed(path / "model.weights.json", several=True)})
    for file in others:
        _check_hdf5(file)
    return sum(file.stat().st_size for file in (*files, *others))


def _check_safetensors(file):
    from safetensors import SafetensorError, safe_open

    try:
        check_file(file, "weights", _MAX_BYTES)
        with safe_open(file, framework="numpy") as opened:
            dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, InputError) as error:
        raise InputError(
            f"A weights file must be complete. Received: {str(file)!r}, which is missing or "
            f"corrupt ({error}). Download it again."
        ) from None
    if not dtypes:
        raise InputError(
            f"A weights file must hold tensors. Received: {str(file)!r} with none. "
            "Download it again."
        )
    for name, dtype in dtypes.items():
        if dtype not in _FLOATS and not name.endswith(_BUFFERS):
            raise InputError(
                f"Weights must be of {', '.join(_FLOATS)}. Received: {name[:200]!r} of {dtype} in "
                f"{str(file)!r}. Convert quantized weights to floats before."
            )


def _check_hdf5(file):
    import h5py

    problem, values = None, 0

    def visit(name, item):
        nonlocal problem, values
        if isinstance(item, h5py.Dataset):
            size = item.size or 0
            values += size
            if item.external or item.is_virtual:
                problem = f"{name[:200]!r}, whose values are in another file"
            # Random number generators store two integers.
            elif item.dtype.kind != "f" and (item.dtype.kind not in "iu" or size > 2):
                problem = f"{name[:200]!r} of {item.dtype}"
        return problem

    def visit_link(name, link):
        nonlocal problem
        if isinstance(link, h5py.ExternalLink):
            problem = f"{name[:200]!r}, whose values are in another file"
        return problem

    try:
        check_file(file, "weights", _MAX_BYTES)
        with h5py.File(file, "r") as opened:
            opened.visititems(visit)
            opened.visititems_links(visit_link)
    except (OSError, RuntimeError, KeyError, ValueError, InputError) as error:
        raise InputError(
            f"A weights file must be complete. Received: {str(file)!r}, which is missing or "
            f"corrupt ({error}). Download it again."
        ) from None
    # Weights hardly compress, but HDF5 need not store the values of an array at all.
    if problem is None and values > file.stat().st_size:
        problem = f"{values:,} values in {file.stat().st_size:,} bytes"
    if problem is not None:
        raise InputError(
            f"A weights file must hold its own values. Received: {str(file)!r} with {problem}. Do "
            "not use this folder."
        )
