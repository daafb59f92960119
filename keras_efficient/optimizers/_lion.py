"""Lion for both libraries."""

from keras_efficient.optimizers._mixins import make_optimizer, make_optimizer_class
from keras_efficient.optimizers._validation import check, shared


@shared
def Lion(
    learning_rate=1e-5,
    *,
    weight_decay=0.1,
    beta_1=0.9,
    beta_2=0.99,
    exclude=(),
    groups=(),
    layerwise_decay=None,
    global_clipnorm=None,
    library="keras",
):
    """Evolved sign momentum: half of Adam's state, a step of one size for every weight.

    The library's own `Lion`, steered by path.

        θ ← θ - η λ θ - η sign(β₁ m + (1-β₁) g)
        m ← β₂ m + (1-β₂) g

    As the step has the size η whatever the gradient, take a rate 3 to 10 times smaller than
    AdamW's, and a decay as many times larger.

    Args:
        learning_rate: float, a `ke.schedules` schedule, or the library's own schedule: η.
        weight_decay: float >= 0, λ, relative to the rate.
        beta_1: float in (0, 1). beta_2: float in [0, 1).
        {shared}

    Returns:
        An instance of a subclass of `keras.optimizers.Lion` or `tf_keras.optimizers.Lion`.

    Raises:
        ValueError, TypeError: an argument is out of its range, or of the wrong library.

    Example:
        >>> model.compile(ke.optimizers.Lion(1e-5, exclude=ke.optimizers.NO_DECAY), loss)

    Reference:
        Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms".
    """
    check("beta_1", beta_1, below=1, exclusive=True)
    check("beta_2", beta_2, below=1)
    return make_optimizer(
        library,
        optimizer_class,
        learning_rate,
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        exclude=exclude,
        groups=groups,
        layerwise_decay=layerwise_decay,
        global_clipnorm=global_clipnorm,
    )


def optimizer_class(flavor):
    """The class, of a library."""
    return make_optimizer_class(flavor, "Lion", "Lion")
