"""Lion, evolved sign momentum, for both libraries."""

from collections.abc import Sequence

from keras_efficient.flavor import Flavor, Model, Optimizer
from keras_efficient.optimizers._mixins import make_optimizer, make_optimizer_class
from keras_efficient.optimizers._param_groups import Groups
from keras_efficient.optimizers._validation import LearningRate, check_number


def Lion(
    learning_rate: LearningRate = 1e-5,
    *,
    weight_decay: float = 0.1,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    exclude: str | Sequence[str] = (),
    groups: Groups = (),
    layerwise_decay: float | None = None,
    global_clipnorm: float | None = None,
    library: str | Model = "keras",
) -> Optimizer:
    """Create a Lion optimizer: sign momentum, with half of Adam's state.

        θ ← θ - η λ θ - η sign(β₁ m + (1-β₁) g)
        m ← β₂ m + (1-β₂) g

    The update is the library's own. Its size is η in every coordinate, whatever the gradient, so
    use a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as many times larger.

    Args:
        learning_rate: float >= 0, a `ke.schedules` schedule, or the library's own schedule: η.
            Default: 1e-5.
        weight_decay: float >= 0, λ, multiplied by the learning rate. Default: 0.1.
        beta_1: float in (0, 1), β₁, the weight of the momentum in the update. Default: 0.9.
        beta_2: float in [0, 1), β₂, the decay of the momentum. Default: 0.99.
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
        An instance of a subclass of `keras.optimizers.Lion` or `tf_keras.optimizers.Lion`.

    Raises:
        TypeError: `learning_rate` is neither a number nor a schedule of this package or of the
            library, or `groups` does not map patterns to `ParamGroup`.
        ValueError: a number is out of its range, a pattern is not a regular expression, or
            `library` is unknown.

    Examples:
        >>> model.compile(ke.optimizers.Lion(1e-5, exclude=ke.optimizers.NO_DECAY), loss)

    Reference:
        Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms".
    """
    check_number("beta_1", beta_1, below=1, exclusive=True)
    check_number("beta_2", beta_2, below=1)
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


def optimizer_class(flavor: Flavor) -> type:
    """Return the Lion class of a library."""
    return make_optimizer_class(flavor, "Lion", "Lion", None)
