"""Write `manifest.json`: the files of a version with their hashes, and its origin."""

import json
import os
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.exporters._files import regular_files, sha256

MANIFEST = "manifest.json"
#: Files that a manifest does not list: itself, and the report for people, which is written later.
UNLISTED = (MANIFEST, "report.html")
FORMAT = 1

#: Attributes of the report that are metrics; those that are None are left out.
_METRICS = (
    "accuracy",
    "examples_per_second",
    "bytes",
    "weight_bytes",
    "storage",
    "latency_ms",
    "max_abs_difference",
    "tolerance",
    "max_rss_bytes",
)


def write_manifest(folder: str | os.PathLike, *, report: Any, recipe: dict[str, Any]) -> Path:
    """Write `manifest.json` into a version: the hash of every file, and how the model was exported.

    It is written after all other files, except `report.html`, which it does not list.
    `ke.versions.check_manifest` compares the folder with it later, wherever it was copied. The
    hashes reveal damage, not forgery: whoever can change a file can change the manifest, too.

    Args:
        folder: path of the version, which holds all its files and no manifest.
        report: an `ExportReport`, for `created`, `versions`, `data_fingerprint` and the metrics.
        recipe: dict of JSON values that says how the model was exported: "quantize", "transforms",
            "signatures" and so on.

    Returns:
        The path of the manifest.

    Raises:
        InputError: there is a manifest already, JSON cannot hold the recipe, or the folder holds
            symbolic links.

    Examples:
        >>> import tempfile, types
        >>> report = types.SimpleNamespace(created="", versions={}, data_fingerprint=None)
        >>> folder = tempfile.mkdtemp()
        >>> with open(folder + "/saved_model.pb", "w") as file:
        ...     size = file.write("graph")
        >>> path = ke.exporters.write_manifest(folder, report=report, recipe={"quantize": "int8"})
        >>> ke.versions.check_manifest(folder)["files"]["saved_model.pb"]["bytes"]
        5

    Reference:
        FIPS 180-4, "Secure Hash Standard", for SHA-256: https://doi.org/10.6028/NIST.FIPS.180-4
    """
    folder = Path(folder)
    files = regular_files(folder)
    if MANIFEST in files:
        raise InputError(
            f"A version's manifest is written once. Received: {folder}, which has one. Export to a "
            "new version."
        )
    if not isinstance(recipe, dict):
        raise InputError(
            "`recipe` must be a dict, such as {'quantize': 'int8'}. Received: "
            f"{type(recipe).__name__}. Give the options of the export by name."
        )
    metrics = {name: getattr(report, name, None) for name in _METRICS}
    manifest = {
        "format": FORMAT,
        "created": report.created,
        "versions": report.versions,
        "recipe": recipe,
        "data_fingerprint": report.data_fingerprint,
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "files": {
            name: {"sha256": sha256(folder / name), "bytes": status.st_size}
            for name, status in files.items()
            if name not in UNLISTED
        },
    }
    try:
        text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            "`recipe` must hold what JSON does: names to finite numbers, strings, lists and dicts. "
            f"Received: {recipe!r} ({error}). Convert those values first."
        ) from error
    path = folder / MANIFEST
    path.write_text(text, encoding="utf-8")
    return path
