"""Whether a version is as its manifest says."""

import json
import re
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._files import regular_files, sha256
from keras_efficient.exporters._manifest import FORMAT, MANIFEST, UNLISTED

#: A manifest has some kB; more is not read.
_MOST_BYTES = 16_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "Copy the version again from where it was exported, or export it again."


def check_manifest(folder) -> dict:
    """Compare a version with its `manifest.json`; nothing of it is loaded or run.

    Every file must be listed and have the size and the SHA-256 that are listed; `report.html` is
    made later and may be there. Symbolic links are refused, and names that leave the folder.

    Args:
        folder: path of the version.

    Returns:
        The manifest, a dict.

    Raises:
        InputError: no manifest, a malformed or a huge one, or the first file that is missing,
            added, truncated or changed.

    Example:
        >>> ke.versions.check_manifest("saved_models/reviews/1")["metrics"]  # doctest: +SKIP
        {'accuracy': 0.8237, 'bytes': 24108544, ...}
    """
    folder = Path(folder)
    files = regular_files(folder)
    manifest = _read(folder, files)
    listed = _listed(manifest, folder)
    if missing := sorted(listed.keys() - files.keys()):
        raise _damaged(folder, missing[0], "missing")
    if added := sorted(files.keys() - listed.keys() - set(UNLISTED)):
        raise _damaged(folder, added[0], "not in the manifest")
    for name, entry in listed.items():
        if files[name].st_size != entry["bytes"]:
            sizes = f"{files[name].st_size:,} bytes instead of {entry['bytes']:,}"
            raise _damaged(folder, name, f"of another size ({sizes})")
    for name, entry in listed.items():
        if sha256(folder / name) != entry["sha256"]:
            raise _damaged(folder, name, "changed (its SHA-256 is another)")
    return manifest


def _damaged(folder, name, what):
    return InputError(
        f"A version must be as its {MANIFEST} says. Received: {folder}, where {name!r} is {what}. "
        f"{_AGAIN}"
    )


def _read(folder, files):
    if MANIFEST not in files:
        raise InputError(
            f"A version must hold the {MANIFEST} that `ke.export` writes. Received: {folder}, "
            "without one. Export the model with this version of keras_efficient, or name another "
            "folder."
        )
    if files[MANIFEST].st_size > _MOST_BYTES:
        raise InputError(
            f"A {MANIFEST} may have {_MOST_BYTES:,} bytes at most. Received: "
            f"{files[MANIFEST].st_size:,} in {folder}. {_AGAIN}"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    # (RecursionError: brackets in brackets. ValueError: no JSON, no UTF-8, a number of miles.)
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(
            f"A {MANIFEST} must be JSON. Received: that of {folder} "
            f"({type(error).__name__}: {str(error)[:100]}). {_AGAIN}"
        ) from error
    made = manifest.get("format") if isinstance(manifest, dict) else None
    if made != FORMAT or isinstance(made, bool):
        raise InputError(
            f"A {MANIFEST} must be a JSON object of format {FORMAT}. Received: format {made!r} in "
            f"{folder}. Read it with the keras_efficient that wrote it, or export again."
        )
    return manifest


def _listed(manifest, folder):
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not listed:
        raise InputError(
            f"A {MANIFEST} must list the version's files. Received: none in {folder}. {_AGAIN}"
        )
    for name, entry in listed.items():
        if not _stays_inside(name):
            raise InputError(
                f"A {MANIFEST} may list files inside its folder only. Received: {name[:200]!r} in "
                f"{folder}. Do not use this version."
            )
        if not _is_entry(entry):
            raise InputError(
                f"Each file of a {MANIFEST} must have its sha256 (64 hexadecimal digits) and "
                f"bytes (an integer, at least 0). Received: {str(entry)[:100]} for {name[:200]!r} "
                f"in {folder}. {_AGAIN}"
            )
    return listed


def _stays_inside(name):
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts) or re.search(r"[\\\x00]|^[A-Za-z]:", name))


def _is_entry(entry):
    if not isinstance(entry, dict):
        return False
    size, digest = entry.get("bytes"), entry.get("sha256")
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    return whole and isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
