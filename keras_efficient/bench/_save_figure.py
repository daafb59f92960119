"""`save_figure`: write a plot into an image file."""

import os
from typing import Any

from keras_efficient._errors import InputError


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure of matplotlib into an image file, and close it.

    Args:
        figure: the figure.
        path: path of the file, whose suffix chooses the format.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib import pyplot

    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(
            "A plot must go into an image file in an existing folder, such as plot.png. Received: "
            f"{str(path)!r} ({error})."
        ) from error
    finally:
        pyplot.close(figure)
