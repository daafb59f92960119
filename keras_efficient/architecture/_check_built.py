"""`check_built`: the condition under which a model's layers and weights can be looked at."""

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model


def check_built(model: Model, caller: str) -> None:
    """Require a built model of either library.

    Args:
        model: the model.
        caller: such as "ke.prune", for messages.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model is not built.
    """
    flavors.of(model)
    if not getattr(model, "built", False) or not model.weights:
        raise ValueError(
            f"{caller} needs a built model: before that there are no weights. Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}, not built. Call it on a batch "
            "first."
        )
