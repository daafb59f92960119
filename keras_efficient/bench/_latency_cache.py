"""Measured latencies, kept between processes in the package's cache folder."""

import hashlib
import json
import math
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from keras_efficient.data._demo_assets import cache


def stored(key: dict[str, Any], count: int) -> list[float] | None:
    """Return the milliseconds measured under a key, or None if there are none or a file is damaged.

    Args:
        key: what they depend on, as JSON values.
        count: how many there must be.
    """
    try:
        found = json.loads(_file(key).read_text(encoding="utf-8"))
        times = [float(ms) for ms in found["milliseconds"]]
        same = found["key"] == json.loads(json.dumps(key))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return times if same and len(times) == count and all(map(_is_time, times)) else None


def store(key: dict[str, Any], times: list[float]) -> None:
    """Keep milliseconds under a key; warn if that is not possible."""
    file = _file(key)
    content = json.dumps({"key": key, "milliseconds": times}, indent=1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, suffix=".partial", encoding="utf-8", delete=False
        ) as partial:
            partial.write(content)
        os.replace(partial.name, file)
    except OSError as error:
        warnings.warn(
            "Measured latencies are kept in the cache folder. Received: "
            f"{str(file.parent)!r} ({error.strerror}), so they will be measured again. Set the "
            "environment variable KERAS_EFFICIENT_CACHE to another folder.",
            stacklevel=4,
        )


def _file(key) -> Path:
    text = json.dumps(key, sort_keys=True)
    return cache() / "latencies" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _is_time(value) -> bool:
    return math.isfinite(value) and value > 0
