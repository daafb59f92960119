"""The error for a layer that adds a loss in a call that is run twice."""

from typing import Any


def added_loss_error(layer: Any) -> ValueError:
    """Return the error for `layer`."""
    return ValueError(
        "A layer whose activations are computed again may not add a loss in its call, whose "
        f"gradient would be lost. Received: {layer.name!r} ({type(layer).__name__}), which called "
        "`add_loss` or has an activity regularizer inside. Leave it out of `ke.remat`'s `layers`."
    )
