"""`write_json`: write a JSON file completely or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values under a temporary name beside a file, then rename it.

    Args:
        path: path of the file, in a folder that exists.
        values: a dict of JSON values.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
