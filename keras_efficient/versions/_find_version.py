"""Which version of a model a path means."""

import os
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._destination import is_version
from keras_efficient.exporters._manifest import MANIFEST


def find_version(directory) -> Path:
    """The folder of the version that `directory` means.

    Args:
        directory: str or path: ".../NAME/3" is version 3; ".../NAME" the one with the highest
            number in it.

    Returns:
        The path of the version, absolute. It has not been looked into: see `check_manifest`.

    Raises:
        InputError: no path, no folder, or no version in it.

    Example:
        >>> import tempfile, pathlib
        >>> from keras_efficient.versions._find_version import find_version
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for number in ("1", "2", "10"):
        ...     (folder / number).mkdir()
        >>> find_version(folder).name, find_version(folder / "2").name
        ('10', '2')
    """
    if not isinstance(directory, str | os.PathLike) or not str(directory).strip():
        raise InputError(
            "A model's folder must be a path: '.../NAME' for its newest version or '.../NAME/3' "
            f"for version 3. Received: {directory!r}. Give a folder such as 'saved_models/reviews'."
        )
    path = Path(directory).expanduser().absolute()
    if not path.is_dir():
        raise InputError(
            f"A model's folder must exist. Received: {directory!s}, which "
            f"{'is a file' if path.exists() else 'does not'}. Correct the path."
        )
    # What lies in the folder decides before its name: a model may be called 2024.
    if any((path / name).exists() for name in (MANIFEST, "saved_model.pb")):
        return path
    versions = [child for child in path.iterdir() if is_version(child) and child.is_dir()]
    if versions:
        return max(versions, key=lambda child: int(child.name))
    if is_version(path):
        return path
    raise InputError(
        "A model's folder must hold versions, which are folders named by numbers. Received: "
        f"{directory!s}, with none. Name the folder that was given to `ke.export`."
    )
