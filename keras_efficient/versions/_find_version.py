"""`find_version`: the version directory that a path refers to."""

import os
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._destination import is_version
from keras_efficient.exporters._manifest import MANIFEST


def find_version(directory: str | os.PathLike) -> Path:
    """Return the folder of the version that `directory` refers to.

    Args:
        directory: path; ".../NAME/3" refers to version 3, ".../NAME" to the version with the
            highest number.

    Returns:
        The absolute path of the version. Its content is not checked; `check_manifest` does that.

    Raises:
        InputError: the argument is not a path, the folder does not exist, or it holds no version.

    Examples:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for number in ("1", "2", "10"):
        ...     (folder / number).mkdir()
        >>> find = ke.versions.find_version
        >>> find(folder).name, find(folder / "2").name
        ('10', '2')

    Reference:
        TensorFlow Serving, `version directories
        <https://www.tensorflow.org/tfx/serving/serving_config>`_: the newest version is served.
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
            f"{'is a file' if path.exists() else 'does not exist'}. Correct the path."
        )
    # The content of a folder matters more than its name, because a model may be called 2024.
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
