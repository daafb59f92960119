"""Checkpoints in a folder: each written completely or not at all, and verified when read."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.checkpoint._array_file import Specs, read_arrays, write_arrays
from keras_efficient.checkpoint._run_lock import LOCK

FORMAT = 1
_ARRAYS, _STATE = "arrays.safetensors", "state.json"
_NAME = re.compile(r"step-\d{8,}(-epoch-\d{4,})?")
_PARTIAL = ".partial-"


class CorruptCheckpointError(Exception):
    """A checkpoint whose files are not as they were written."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint, read from its folder.

    Attributes:
        path: its folder.
        state: dict, the content of its state.json.
        arrays: dict {name: array}, the content of its arrays.safetensors, mapped into memory.
    """

    path: Path
    state: dict[str, Any]
    arrays: dict[str, np.ndarray]


class CheckpointStore:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)

    def names(self) -> list[str]:
        """Return the names of all checkpoints, complete or not, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(
            (p.name for p in self.directory.iterdir() if _NAME.fullmatch(p.name)), key=_key
        )

    def check(self):
        """Refuse a folder that cannot be written or that holds something else.

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
        ours = [n for n in present if _NAME.fullmatch(n) or n.startswith((_PARTIAL, LOCK))]
        if present and not ours:
            raise InputError(
                "A run is saved in a folder of its own. Received: "
                f"{str(self.directory)!r}, which holds {sorted(present)[0]!r} and no checkpoint. "
                "Give an empty folder, or one that does not exist."
            )

    def remove_partial(self):
        """Remove what killed writers left behind. The caller must own the folder."""
        for path in self.directory.glob(f"{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)

    def check_free_space(self, needed_bytes: int, keep: int):
        """Refuse a disk without space for `keep` checkpoints and the one being written.

        Args:
            needed_bytes: size of one checkpoint.
            keep: number of checkpoints that stay.

        Raises:
            InputError: the disk is too full.
        """
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

    def write(
        self, name: str, specs: Specs, read: Callable[[str], np.ndarray], state: dict[str, Any]
    ):
        """Write a checkpoint; when this returns, it survives a crash of the machine.

        A corrupt checkpoint of that name is replaced.

        Args:
            name: name of its folder.
            specs: dict {array's name: (shape, NumPy dtype)}.
            read: function of a name that returns the array.
            state: dict of JSON values.

        Raises:
            InputError: there is a complete checkpoint of that name.
            OSError: it could not be written; nothing of it is left.
        """
        target = self.directory / name
        if target.exists():
            with suppress(CorruptCheckpointError):
                self.load(name)
                raise InputError(
                    "A step of a run is saved once. Received: "
                    f"{str(target)!r}, which exists and is not of this run. Another process saves "
                    "in this folder: stop one of the two, and give each run a folder of its own."
                )
            shutil.rmtree(target)
        self.directory.mkdir(parents=True, exist_ok=True)
        _flush(self.directory.parent)
        partial = self.directory / f"{_PARTIAL}{name}-{os.getpid()}"
        try:
            partial.mkdir()
            digest, size = write_arrays(partial / _ARRAYS, specs, read)
            state = {"format": FORMAT, **state, "arrays": {"sha256": digest, "bytes": size}}
            # The digest is of the state as it will be read: JSON turns keys into strings.
            state = json.loads(json.dumps(state))
            with open(partial / _STATE, "w") as file:
                json.dump({**state, "checksum": _digest(state)}, file)
            for path in (*partial.iterdir(), partial):
                _flush(path)
            os.rename(partial, target)
            _flush(self.directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def delete(self, names: Iterable[str]):
        """Delete checkpoints."""
        for name in names:
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def read_state(self, name: str) -> dict[str, Any]:
        """Return a checkpoint's state without a look at its arrays; {} if it cannot be read."""
        try:
            state = json.loads((self.directory / name / _STATE).read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def latest(self) -> StoredCheckpoint | None:
        """Return the newest complete checkpoint with finite weights, or None if there is none.

        Warns of each newer one that is corrupt or whose weights are NaN or infinite. If no
        checkpoint has finite weights, the newest complete one is returned.

        Raises:
            InputError: all checkpoints are corrupt.
        """
        names, not_finite = self.names(), []
        for name in reversed(names):
            try:
                checkpoint = self.load(name)
                if checkpoint.state.get("finite", True):
                    break
                not_finite.append(checkpoint)
            except CorruptCheckpointError as error:
                warnings.warn(
                    f"The checkpoint {str(self.directory / name)!r} is corrupt ({error}) and is "
                    "skipped: the one before it is used.",
                    stacklevel=3,
                )
        else:
            checkpoint = not_finite[0] if not_finite else None
        if not_finite:
            skipped = checkpoint is not not_finite[0]
            warnings.warn(
                f"Weights are NaN or infinite in {', '.join(c.path.name for c in not_finite)} of "
                f"{str(self.directory)!r}. "
                + (
                    f"The run resumes from {checkpoint.path.name}, before that. Without a change, "
                    "such as a lower learning rate, it will probably diverge again."
                    if skipped and checkpoint
                    else "No earlier save is finite: start a new run, in another folder."
                ),
                stacklevel=3,
            )
        if checkpoint is not None:
            return checkpoint
        if names:
            raise InputError(
                "A run resumes from a complete checkpoint. Received: "
                f"{str(self.directory)!r}, where {', '.join(names)} are corrupt. Check the disk; "
                "delete the folder to start a new run."
            )
        return None

    def load(self, name: str) -> StoredCheckpoint:
        """Read a checkpoint and verify its size and checksums.

        Raises:
            CorruptCheckpointError: its files are not as they were written.
            InputError: another version wrote it, in another format.
        """
        path = self.directory / name
        try:
            state = json.loads((path / _STATE).read_text())
            checksum = state.pop("checksum")
            complete = checksum == _digest(state)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptCheckpointError(
                f"{_STATE} cannot be read: {type(error).__name__}"
            ) from error
        if not complete:
            raise CorruptCheckpointError(f"{_STATE} has another checksum")
        if state["format"] != FORMAT:
            raise InputError(
                "A checkpoint must be in the format that this version reads. Received: "
                f"{str(path)!r} of format {state['format']}, where this version reads {FORMAT}. "
                "Install the version that wrote it, or start a new run in another folder."
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
                f"{_ARRAYS} has {size} bytes instead of {state['arrays']['bytes']}"
            )
        if digest != state["arrays"]["sha256"]:
            raise CorruptCheckpointError(f"{_ARRAYS} has another checksum")
        return StoredCheckpoint(path, state, read_arrays(arrays))


def _flush(path: Path):
    """Flush a file or folder to the disk. Windows cannot open a folder, which is ignored."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _key(name: str) -> tuple[int, int]:
    _, step, *epoch = name.split("-")
    return int(step), int(epoch[-1]) if epoch else 0
