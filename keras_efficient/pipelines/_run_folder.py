"""The folder of a `compress` run: whose it is, and the results of its phases."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.checkpoint._run_lock import LOCK, RunLock
from keras_efficient.data._write_json import write_json
from keras_efficient.exporters import check_destination

FORMAT = 1
_RUN = "run.json"


class RunFolder:
    """The folder in which each phase of a run leaves its result.

    Args:
        directory: path of the folder.
        identity: dict of JSON values that the run has in common with its continuation: model, data
            and settings.
    """

    def __init__(self, directory: str | os.PathLike, identity: Mapping[str, Any]):
        self.path = Path(directory).expanduser().absolute()
        self.identity = json.loads(json.dumps(identity))
        self._lock = RunLock(self.path, "keras-efficient compress")

    def check(self, resume: bool, needed_bytes: int = 0) -> None:
        """Refuse a folder that is not this run's, before anything is computed.

        Args:
            resume: whether a run is to go on.
            needed_bytes: space that the results take. Default: 0.

        Raises:
            InputError: the folder cannot be written or its disk is too full; it holds something
                else, a run where a new one was to begin, no run to resume, or one of another model,
                other data or settings.
        """
        # The exports are the deepest part.
        check_destination(self.path / "teacher" / "int8", needed_bytes)
        names = os.listdir(self.path) if self.path.is_dir() else []
        if _RUN in names:
            if not resume:
                raise InputError(
                    "A new run needs a folder of its own. Received: "
                    f"{str(self.path)!r}, which holds a run of compress. Give another folder, or "
                    "continue that run with --resume (in Python, resume=True)."
                )
            self._check_same(self._read())
            return
        others = sorted(name for name in names if not name.startswith(LOCK))
        if others:
            raise InputError(
                f"A run needs a folder of its own. Received: {str(self.path)!r}, which holds "
                f"{others[0]!r} and no run of compress. Give an empty folder, or one that does not "
                "exist."
            )
        if resume:
            raise InputError(
                f"There must be a run to resume. Received: {str(self.path)!r} without one. Start "
                "without --resume (in Python, resume=False)."
            )

    def open(self) -> None:
        """Own the folder, and write whose run it is."""
        self._lock.acquire()
        if not (self.path / _RUN).exists():
            self.write(_RUN, {"format": FORMAT, "settings": self.identity})

    def close(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the JSON result of a phase, or None if it has none yet."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write the JSON result of a phase, completely or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def _read(self):
        try:
            run = json.loads((self.path / _RUN).read_text(encoding="utf-8"))
            if run["format"] != FORMAT or not isinstance(run["settings"], dict):
                raise ValueError(f"its format is {run['format']!r}")
            return run["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"A run's {_RUN} must be as it was written. Received: "
                f"{str(self.path / _RUN)!r}, which is not ({error}). Give another folder."
            ) from error

    def _check_same(self, saved):
        changed = [name for name, value in self.identity.items() if saved.get(name) != value]
        if changed:
            listed = "; ".join(
                f"{name}: was {_short(saved.get(name))}, now {_short(self.identity[name])}"
                for name in changed
            )
            raise InputError(
                "A run goes on with the model, the data and the settings that it began with; only "
                f"the target may change. Received: {str(self.path)!r} with {listed}. Give another "
                "folder, or the same values."
            )


def _short(value):
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}...{text[-1:]}"
