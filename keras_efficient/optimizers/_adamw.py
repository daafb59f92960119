"""AdamW with rules per variable, for both libraries."""

from collections.abc import Sequence
from typing import Any

from keras_efficient.flavor import Flavor, Model, Optimizer
from keras_efficient.optimizers._fused_adam import FusedAdamMixin
from keras_efficient.optimizers._mixins import make_optimizer, make_optimizer_class
from keras_efficient.optimizers._param_groups import Groups
from keras_efficient.optimizers._validation import LearningRate, check_adam


def AdamW(
    learning_rate: LearningRate = 5e-5,
    *,
    weight_decay: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    exclude: str | Sequence[str] = (),
    groups: Groups = (),
    layerwise_decay: float | None = None,
    global_clipnorm: float | None = None,
    library: str | Model = "keras",
) -> Optimizer:
    """Create an AdamW optimizer: Adam with decoupled weight decay.

        m ← β₁ m + (1-β₁) g,  v ← β₂ v + (1-β₂) g²
        θ ← θ - η λ θ - η √(1-β₂ᵗ) / (1-β₁ᵗ) · m / (√v + ε)

    The update and its slots are the library's own, computed by one operation of TensorFlow. Keras
    adds ε before it corrects the bias of v, so the paper's ε corresponds to ε / √(1-β₂ᵗ) here.

    Args:
        learning_rate: float >= 0, a `ke.schedules` schedule, or the library's own schedule: η.
            Default: 5e-5.
        weight_decay: float >= 0, λ, multiplied by the learning rate. Default: 0.01.
        beta_1: float in [0, 1), β₁, the decay of the first moment. Default: 0.9.
        beta_2: float in [0, 1), β₂, the decay of the second moment. Default: 0.999.
        epsilon: float > 0, ε. Default: 1e-6, as in BERT; Keras has 1e-7.
        exclude: regular expression, or a sequence of them. A variable whose path contains a match
            is not decayed. `ke.optimizers.NO_DECAY` matches biases and normalisation layers.
            Default: `()`, no exclusions.
        groups: mapping of regular expressions to `ke.optimizers.ParamGroup`, or a sequence of such
            pairs: learning-rate multipliers and decays for the variables whose paths contain a
            match. The first match wins; `exclude` applies within every group. Default: `()`.
        layerwise_decay: float in (0, 1] or None, d: of L layers, layer i = 0 … L-1 trains at
            d^(L-i) times the learning rate, the embeddings at d^(L+1) and the head at 1 times
            (ELECTRA, BEiT); see `ke.optimizers.layer_depths`. Default: None, one rate for all.
        global_clipnorm: float > 0 or None. The gradients of all variables are scaled down together
            to at most this global L2 norm. Default: None, no clipping.
        library: "keras" or "tf_keras", or a model of either: the library whose optimizer to
            create. Each library's `compile` rejects the other's. Default: "keras".

    Returns:
        An instance of a subclass of `keras.optimizers.AdamW` or `tf_keras.optimizers.AdamW`.

    Raises:
        TypeError: `learning_rate` is neither a number nor a schedule of this package or of the
            library, or `groups` does not map patterns to `ParamGroup`.
        ValueError: a number is out of its range, a pattern is not a regular expression, or
            `library` is unknown.

    Examples:
        >>> rate = ke.schedules.warmup_cosine(5e-5, warmup_steps=100, total_steps=2000)
        >>> model.compile(ke.optimizers.AdamW(rate, exclude=ke.optimizers.NO_DECAY), loss)

    Reference:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    check_adam(beta_1, beta_2, epsilon)
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


def optimizer_class(flavor: Flavor) -> type:
    """Return the AdamW class of a library."""
    update: Any = FusedAdamMixin
    return make_optimizer_class(flavor, "AdamW", "AdamW", update)
