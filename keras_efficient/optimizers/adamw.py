"""AdamW for both libraries."""

from keras_efficient import flavor as flavors
from keras_efficient.optimizers.exclusions import excluding
from keras_efficient.schedules.schedule import Schedule


def AdamW(
    learning_rate=5e-5,
    *,
    weight_decay=0.01,
    exclude=(),
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    library="keras",
):
    """Adam with decoupled weight decay: the library's own `AdamW`, with exclusions by path.

        θ ← θ - η λ θ        for variables that no pattern of `exclude` matches
        θ ← θ - η m̂ / (√v̂ + ε)

    Args:
        learning_rate: float, a `ke.schedules` schedule, or the library's own schedule.
        weight_decay: float >= 0, λ, relative to the rate.
        exclude: regular expressions; a variable whose path contains a match does not decay.
            `ke.optimizers.NO_DECAY` names biases and normalisation layers.
        beta_1, beta_2, epsilon: as in Keras. (ε = 1e-6 as in BERT, where Keras has 1e-7.)
        library: "keras" (default) or "tf_keras", or a model: each library's `compile` refuses
            the other's optimizers.

    Returns:
        An instance of a subclass of `keras.optimizers.AdamW` or `tf_keras.optimizers.AdamW`.

    Example:
        >>> rate = ke.schedules.warmup_cosine(5e-5, warmup_steps=100, total_steps=2000)
        >>> model.compile(ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY), loss)

    Reference:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    flavor = flavors.get(library)
    if isinstance(learning_rate, Schedule):
        learning_rate = learning_rate.wrap(flavor)
    return excluding(flavor.keras.optimizers.AdamW)(
        learning_rate,
        weight_decay=weight_decay,
        exclude=exclude,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
    )
