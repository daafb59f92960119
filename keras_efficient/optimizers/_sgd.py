"""SGD with momentum and decoupled weight decay for both libraries."""

from keras_efficient.optimizers._mixins import make_optimizer, make_optimizer_class
from keras_efficient.optimizers._validation import check, shared


@shared
def SGD(
    learning_rate=0.01,
    *,
    weight_decay=0.0,
    momentum=0.9,
    nesterov=False,
    exclude=(),
    groups=(),
    layerwise_decay=None,
    global_clipnorm=None,
    library="keras",
):
    """Stochastic gradient descent with momentum: the library's own `SGD`, steered by path.

        θ ← θ - η λ θ
        m ← μ m - η g
        θ ← θ + m              (nesterov: θ ← θ + μ m - η g)

    The momentum holds the rate of the step that added to it, as Keras has it.

    Args:
        learning_rate: float, a `ke.schedules` schedule, or the library's own schedule: η.
        weight_decay: float >= 0, λ, relative to the rate.
        momentum: float in [0, 1), μ.
        nesterov: bool.
        {shared}

    Returns:
        An instance of a subclass of `keras.optimizers.SGD` or `tf_keras.optimizers.SGD`.

    Raises:
        ValueError, TypeError: an argument is out of its range, or of the wrong library.

    Example:
        >>> model.compile(ke.optimizers.SGD(0.1, weight_decay=5e-4), loss)

    Reference:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 1 (SGDW).
    """
    check("momentum", momentum, below=1)
    return make_optimizer(
        library,
        optimizer_class,
        learning_rate,
        weight_decay=weight_decay,
        momentum=float(momentum),
        nesterov=nesterov,
        exclude=exclude,
        groups=groups,
        layerwise_decay=layerwise_decay,
        global_clipnorm=global_clipnorm,
    )


def optimizer_class(flavor):
    """The class, of a library."""
    return make_optimizer_class(flavor, "SGD", "SGD")
