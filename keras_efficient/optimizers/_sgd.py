"""SGD with momentum and decoupled weight decay, for both libraries."""

from collections.abc import Sequence

from keras_efficient.flavor import Flavor, Model, Optimizer
from keras_efficient.optimizers._mixins import make_optimizer, make_optimizer_class
from keras_efficient.optimizers._param_groups import Groups
from keras_efficient.optimizers._validation import LearningRate, check_number


def SGD(
    learning_rate: LearningRate = 0.01,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    exclude: str | Sequence[str] = (),
    groups: Groups = (),
    layerwise_decay: float | None = None,
    global_clipnorm: float | None = None,
    library: str | Model = "keras",
) -> Optimizer:
    """Create an SGD optimizer with momentum and decoupled weight decay.

        θ ← θ - η λ θ
        m ← μ m - η g
        θ ← θ + m              (Nesterov: θ ← θ + μ m - η g)

    The update is the library's own. As in Keras, each gradient enters the momentum already
    multiplied by the learning rate of its step.

    Args:
        learning_rate: float >= 0, a `ke.schedules` schedule, or the library's own schedule: η.
            Default: 0.01.
        weight_decay: float >= 0, λ, multiplied by the learning rate. Default: 0.
        momentum: float in [0, 1), μ. Default: 0.9.
        nesterov: bool, whether to use Nesterov momentum. Default: False.
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
        An instance of a subclass of `keras.optimizers.SGD` or `tf_keras.optimizers.SGD`.

    Raises:
        TypeError: `learning_rate` is neither a number nor a schedule of this package or of the
            library, or `groups` does not map patterns to `ParamGroup`.
        ValueError: a number is out of its range, a pattern is not a regular expression, or
            `library` is unknown.

    Examples:
        >>> model.compile(ke.optimizers.SGD(0.1, weight_decay=5e-4), loss)

    Reference:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 1 (SGDW).
    """
    check_number("momentum", momentum, below=1)
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


def optimizer_class(flavor: Flavor) -> type:
    """Return the SGD class of a library."""
    return make_optimizer_class(flavor, "SGD", "SGD", None)
