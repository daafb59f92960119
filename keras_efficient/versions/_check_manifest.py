"""`check_manifest`: verify the files of a version against its manifest."""

import json
import os
import re
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.exporters._files import regular_files, sha256
from keras_efficient.exporters._manifest import FORMAT, MANIFEST, UNLISTED

#: Largest manifest that is read; a normal one has a few kB.
_MAX_BYTES = 16_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "Copy the version again from where it was exported, or export it again."


def check_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """Compare the files of a version with its `manifest.json`, without loading or running them.

    Every file must be listed, with its size and SHA-256. Only `report.html`, which is written after
    the manifest, may be missing from it. Symbolic links, and names that lead out of the folder, are
    refused. The hashes detect damage, not forgery: whoever changes a file can change the manifest.

    Args:
        folder: path of the version.

    Returns:
        The manifest: a dict with "format", "created", "versions", "recipe", "data_fingerprint",
        "metrics" and "files".

    Raises:
        InputError: the manifest is missing, malformed or too large; or a file is missing, added,
            truncated or changed. The message names the first such file.

    Examples:
        >>> ke.versions.check_manifest("saved_models/reviews/1")["metrics"]  # doctest: +SKIP
        {'accuracy': 0.8237, 'bytes': 24108544, ...}

    Reference:
        `FIPS 180-4, Secure Hash Standard <https://doi.org/10.6028/NIST.FIPS.180-4>`_.
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
            raise _damaged(folder, name, f"different in size ({sizes})")
    for name, entry in listed.items():
        if sha256(folder / name) != entry["sha256"]:
            raise _damaged(folder, name, "changed (its SHA-256 differs)")
    return manifest


def _damaged(folder, name, state):
    return InputError(
        f"A version must match its {MANIFEST}. Received: {folder}, where {name!r} is {state}. "
        f"{_REMEDY}"
    )


def _read(folder, files):
    if MANIFEST not in files:
        raise InputError(
            f"A version must hold the {MANIFEST} that `ke.export` writes. Received: {folder}, "
            "without one. Export the model with this version of keras_efficient, or name another "
            "folder."
        )
    if files[MANIFEST].st_size > _MAX_BYTES:
        raise InputError(
            f"A {MANIFEST} may have at most {_MAX_BYTES:,} bytes. Received: "
            f"{files[MANIFEST].st_size:,} in {folder}. {_REMEDY}"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    # ValueError covers malformed JSON, other encodings and overlong numbers; RecursionError comes
    # from deep nesting.
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(
            f"A {MANIFEST} must be JSON. Received: that of {folder} "
            f"({type(error).__name__}: {str(error)[:100]}). {_REMEDY}"
        ) from error
    received = manifest.get("format") if isinstance(manifest, dict) else None
    if received != FORMAT or isinstance(received, bool):
        raise InputError(
            f"A {MANIFEST} must be a JSON object of format {FORMAT}. Received: format {received!r} "
            f"in {folder}. Read it with the keras_efficient that wrote it, or export again."
        )
    return manifest


def _listed(manifest, folder):
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not listed:
        raise InputError(
            f"A {MANIFEST} must list the version's files. Received: none in {folder}. {_REMEDY}"
        )
    for name, entry in listed.items():
        if not _stays_inside(name):
            raise InputError(
                f"A {MANIFEST} may only list files inside its folder. Received: {name[:200]!r} in "
                f"{folder}. Do not use this version."
            )
        if not _is_entry(entry):
            raise InputError(
                f"Each file of a {MANIFEST} must have its sha256 (64 hexadecimal digits) and its "
                f"bytes (an integer, at least 0). Received: {str(entry)[:100]} for {name[:200]!r} "
                f"in {folder}. {_REMEDY}"
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
