"""What a version consists of, and where it comes from: `manifest.json` beside the model."""

import json
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._files import regular_files, sha256

MANIFEST = "manifest.json"
#: Written after the manifest, for people; nothing loads it.
UNLISTED = (MANIFEST, "report.html")
FORMAT = 1

#: What the report measured. (What it does not know stays out.)
_METRICS = (
    "accuracy",
    "examples_per_second",
    "bytes",
    "weight_bytes",
    "latency_ms",
    "max_abs_difference",
    "tolerance",
    "max_rss_bytes",
)


def write_manifest(folder, *, report, recipe) -> Path:
    """Write `manifest.json` into a version's folder: every file's hash, and how it was made.

    The last file to be written. `check_manifest` compares the folder with it later, wherever the
    folder went. The hashes tell damage, not forgery: who can change a file can change the manifest.
    `report.html`, which comes after it, is not listed.

    Args:
        folder: path of the version, with all its files in it and no manifest yet.
        report: an `ExportReport`, for `created`, `versions`, `data_fingerprint` and the metrics.
        recipe: dict, how the model was written: "quantize", "transforms", "signatures" and so on;
            anything that JSON holds.

    Returns:
        The path of the manifest.

    Raises:
        InputError: there is a manifest already, the recipe is no JSON, or the folder holds links.

    Example:
        >>> import tempfile, types
        >>> from keras_efficient.exporters._manifest import write_manifest
        >>> from keras_efficient.versions._check_manifest import check_manifest
        >>> report = types.SimpleNamespace(created="", versions={}, data_fingerprint=None)
        >>> folder = tempfile.mkdtemp()
        >>> with open(folder + "/saved_model.pb", "w") as file:
        ...     size = file.write("graph")
        >>> path = write_manifest(folder, report=report, recipe={"quantize": "int8"})
        >>> check_manifest(folder)["files"]["saved_model.pb"]["bytes"]
        5
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
            f"{type(recipe).__name__}. Give what was asked of the export by name."
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
