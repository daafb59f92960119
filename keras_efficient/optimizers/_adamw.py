"""AdamW for both libraries."""

from keras_efficient.optimizers._mixins import make_optimizer, make_optimizer_class
from keras_efficient.optimizers._validation import check, shared


@shared
def AdamW(
    learning_rate=5e-5,
    *,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    exclude=(),
    groups=(),
    layerwise_decay=None,
    global_clipnorm=None,
    library="keras",
):
    """Adam with decoupled weight decay: the library's own `AdamW`, steered by path.

        m ← β₁ m + (1-β₁) g,  v ← β₂ v + (1-β₂) g²
        θ ← θ - η λ θ - η √(1-β₂ᵗ) / (1-β₁ᵗ) · m / (√v + ε)

    (Keras adds ε before v is corrected for its start at zero: the paper's ε is ε / √(1-β₂ᵗ) here.)

    Args:
        learning_rate: float, a `ke.schedules` schedule, or the library's own schedule: η.
        weight_decay: float >= 0, λ, relative to the rate.
        beta_1, beta_2: floats in [0, 1).
        epsilon: float > 0. (1e-6 as in BERT, where Keras has 1e-7.)
        {shared}

    Returns:
        An instance of a subclass of `keras.optimizers.AdamW` or `tf_keras.optimizers.AdamW`.

    Raises:
        ValueError, TypeError: an argument is out of its range, or of the wrong library.

    Example:
        >>> rate = ke.schedules.warmup_cosine(5e-5, warmup_steps=100, total_steps=2000)
        >>> model.compile(ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY), loss)

    Reference:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    check("beta_1", beta_1, below=1)
    check("beta_2", beta_2, below=1)
    check("epsilon", epsilon, exclusive=True)
    return make_optimizer(
        library,
        optimizer_class,
        learning_rate,
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        exclude=exclude,
        groups=groups,
        layerwise_decay=layerwise_decay,
        global_clipnorm=global_clipnorm,
    )


def optimizer_class(flavor):
    """The class, of a library."""
    return make_optimizer_class(flavor, "AdamW", "AdamW")
