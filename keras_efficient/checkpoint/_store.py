"""Checkpoints of a run in a folder: each written whole or not at all, and checked when read."""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_efficient._errors import InputError

FORMAT = 1
_ARRAYS, _STATE = "arrays.safetensors", "state.json"
_NAME = re.compile(r"step-\d{8,}(-epoch-\d{4,})?")
_PARTIAL = ".partial-"
#: safetensors' names of NumPy's (and ml_dtypes') dtypes.
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


class CorruptCheckpointError(Exception):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that was found whole.

    Attributes:
        path: its folder.
        state: dict, its state.json.
        arrays: dict {name: array}, its arrays.safetensors, mapped into memory.
    """

    path: Path
    state: dict
    arrays: dict


class CheckpointStore:
    """The checkpoints in a folder of their own."""

    def __init__(self, directory):
        self.directory = Path(directory)

    def names(self) -> list:
        """The names of all checkpoints, whole or not, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(
            (p.name for p in self.directory.iterdir() if _NAME.fullmatch(p.name)), key=_key
        )

    def check(self):
        """Refuse a folder that cannot be written, or that holds something else.

        What killed writers left behind is removed.

        Raises:
            InputError: the path is refused.
        """
        ancestor = self.directory.absolute()
        while not os.path.lexists(ancestor):
            ancestor = ancestor.parent
        if not ancestor.is_dir():
            raise InputError(
                f"A run is saved in a folder. Received: {str(self.directory)!r}, where {ancestor} "
                "is a file. Move it away or choose another path."
            )
        if not os.access(ancestor, os.W_OK | os.X_OK):
            raise InputError(
                f"A run's folder must be writable. Received: {str(self.directory)!r}, and "
                f"{ancestor} may not be written by this user. Choose another path or change its "
                "permissions."
            )
        if not self.directory.is_dir():
            return
        present = [path.name for path in self.directory.iterdir()]
        ours = [n for n in present if _NAME.fullmatch(n) or n.startswith(_PARTIAL)]
        if present and not ours:
            raise InputError(
                "A run is saved in a folder of its own. Received: "
                f"{str(self.directory)!r}, which holds {sorted(present)[0]!r} and no saved run. "
                "Give an empty folder, or one that does not exist."
            )
        for name in present:
            if name.startswith(_PARTIAL):
                shutil.rmtree(self.directory / name, ignore_errors=True)

    def check_room(self, needed_bytes, keep):
        """Refuse a disk that is too full for `keep` checkpoints and the one being written."""
        ancestor = self.directory.absolute()
        while not ancestor.is_dir():
            ancestor = ancestor.parent
        wanted = needed_bytes * max(keep + 1 - len(self.names()), 1)
        free = shutil.disk_usage(ancestor).free
        if free < wanted:
            raise InputError(
                f"A run that keeps {keep} checkpoints needs {wanted / 1e6:,.1f} MB of free disk. "
                f"Received: {str(self.directory)!r}, with {free / 1e6:,.1f} MB free. Free some "
                "space, choose another disk or keep fewer."
            )

    def write(self, name, specs, read, state):
        """Write a checkpoint; it is there when this returns, whatever happens to the machine.

        Args:
            name: of its folder.
            specs: dict {array's name: (shape, NumPy dtype)}.
            read: function of a name that gives the array.
            state: dict of JSON values.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        target = self.directory / name
        if target.exists():
            with suppress(CorruptCheckpointError):
                self.load(name)
                return
            shutil.rmtree(target)
        self.directory.mkdir(parents=True, exist_ok=True)
        _sync(self.directory.parent)
        partial = self.directory / f"{_PARTIAL}{name}-{os.getpid()}"
        try:
            partial.mkdir()
            digest, size = _write_arrays(partial / _ARRAYS, specs, read)
            state = {"format": FORMAT, **state, "arrays": {"sha256": digest, "bytes": size}}
            # (As it will be read: with strings for keys.)
            state = json.loads(json.dumps(state))
            with open(partial / _STATE, "w") as file:
                json.dump({**state, "checksum": _digest(state)}, file)
            sync(partial)
            os.rename(partial, target)
            _sync(self.directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def prune(self, newest, keep):
        """Delete all but `newest` and the `keep - 1` before it."""
        names = self.names()
        upto = [name for name in names if _key(name) <= _key(newest)]
        for name in {*names} - {*upto[-keep:]}:
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def load(self, name) -> StoredCheckpoint:
        """Read a checkpoint and check it.

        Raises:
            Damaged: it is not whole.
        """
        path = self.directory / name
        try:
            state = json.loads((path / _STATE).read_text())
            checksum = state.pop("checksum")
            whole = checksum == _digest(state)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptCheckpointError(
                f"{_STATE} cannot be read: {type(error).__name__}"
            ) from error
        if not whole:
            raise CorruptCheckpointError(f"{_STATE} is not as it was written")
        if state["format"] != FORMAT:
            raise InputError(
                "A saved run is read by the version that knows its format. Received: "
                f"{str(path)!r} of format {state['format']}, where this one knows {FORMAT}. "
                "Install the version that wrote it, or start anew in another folder."
            )
        try:
            arrays = path / _ARRAYS
            size, digest = arrays.stat().st_size, None
            if size == state["arrays"]["bytes"]:
                with open(arrays, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CorruptCheckpointError(
                f"{_ARRAYS} cannot be read: {type(error).__name__}"
            ) from error
        if digest is None:
            raise CorruptCheckpointError(
                f"{_ARRAYS} has {size} bytes of {state['arrays']['bytes']}"
            )
        if digest != state["arrays"]["sha256"]:
            raise CorruptCheckpointError(f"{_ARRAYS} is not as it was written")
        return StoredCheckpoint(path, state, read_arrays(arrays))


def check_settings(then, now):
    """Refuse to go on with other settings than a run was started with.

    Raises:
        InputError: they differ.
    """
    names = [name for name in now if then.get(name) != now[name]]
    if names:
        listed = "; ".join(f"{n}: was {then.get(n)!r}, now {now[n]!r}" for n in names)
        raise InputError(
            f"A run resumes with the settings it was started with. Received: {listed}. "
            "Resume with the same settings, or start anew: without --resume on the command line, "
            "in another folder elsewhere."
        )


def check_dtypes(specs):
    """Refuse what a file of arrays cannot hold.

    Raises:
        InputError: a dtype is not one of NumPy's numbers, bool or bfloat16.
    """
    wrong = [f"{name} ({dtype})" for name, (_, dtype) in specs.items() if dtype.name not in _CODES]
    if wrong:
        raise InputError(
            f"A saved run holds variables of these dtypes: {', '.join(_CODES)}. Received: "
            f"{', '.join(wrong[:3])}. Keep other things out of what training changes."
        )


def sync(folder):
    """Have a folder and the files in it on the disk, not only in the machine's memory."""
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sync(path):
    # (Windows cannot open a folder.)
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_arrays(path) -> dict:
    """The arrays of a safetensors file. (Its NumPy reader knows no bfloat16.)"""
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


def _write_arrays(path, specs, read):
    """Write one array after the other, as safetensors; the file's SHA-256 and size."""
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


def _digest(state):
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _key(name):
    _, step, *epoch = name.split("-")
    return int(step), int(epoch[-1]) if epoch else 0
