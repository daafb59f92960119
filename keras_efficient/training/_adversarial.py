"""Adversarial training: perturbed word embeddings (FGM), or two dropout masks (R-Drop)."""

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._rdrop import RDrop
from keras_efficient.training._sam import SecondPass, set_second_pass

METHODS = ("fgm", "rdrop")
#: Regular expression for the path of the word embedding in KerasHub, Hugging Face, Model Garden
#: and plain Keras models.
WORD_EMBEDDINGS = r"(token|word)_embedding|shared/|(^|/)[a-z]*embedding(_\d+)?/embeddings"


def adversarial(
    model: Model,
    method: str | None = "fgm",
    *,
    epsilon: float = 1.0,
    variables: str = WORD_EMBEDDINGS,
    alpha: float = 1.0,
    from_logits: bool | None = None,
) -> Model:
    """Regularise training with adversarial word embeddings (FGM) or with R-Drop.

    "fgm" moves the word embeddings E along their gradient, in the direction that increases the
    loss most, takes the gradient there as well, and applies the sum of both gradients. It costs a
    second forward and backward pass and a second all-reduce per update:

        r = ε · g_E / ‖g_E‖        g = g(θ) + g(θ with E + r)

    "rdrop" runs every example twice with two dropout masks, and penalises the divergence of the
    two predictions. It doubles the examples per microbatch:

        L = (L₁ + L₂) / 2 + α · (KL(p₁‖p₂) + KL(p₂‖p₁)) / 2

    A mean over examples or tokens, with the weights and masks that the loss has. Both can be
    combined with `ke.accumulate`, `ke.distill` and several replicas. `g_E` is the gradient of the
    whole batch, so an FGM update does not depend on how the batch is split.

    Args:
        model: a Keras 3 or tf_keras model, Hugging Face TF models included; before or after
            `compile`.
        method: "fgm", "rdrop", or None to remove both. Default: "fgm".
        epsilon: float > 0, ε: Euclidean length of the perturbation of "fgm". Default: 1.0.
        variables: regular expression for the paths of the variables that "fgm" perturbs. Default:
            the word embeddings of KerasHub, Hugging Face, Model Garden and plain Keras models.
        alpha: float > 0, α: weight of the divergence of "rdrop". Default: 1.0.
        from_logits: whether the model's outputs are logits, for "rdrop". Default: None, read from
            the compiled loss in the first step of `fit`; outputs of Hugging Face models are logits.

    Returns:
        The model.

    Raises:
        ValueError: if `method` is unknown, `epsilon` or `alpha` is not positive, or `ke.sam` is
            on, for "fgm"; in `fit`, if `variables` matches no trainable variable.
        TypeError: if `model` is not a Keras model.

    Examples:
        >>> model = ke.adversarial(model, "rdrop", alpha=1.0)
        >>> history = model.fit(dataset, verbose=0)

    Reference:
        Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification"
        (FGM); Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks".
    """
    flavors.of(model)
    if method is not None and method not in METHODS:
        raise ValueError(
            f"`method` must be one of {METHODS}, or None to remove both. Received: {method!r}."
        )
    for name, value in (("epsilon", epsilon), ("alpha", alpha)):
        if not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"`{name}` must be a number > 0. Received: {value!r}.")
    second_pass = SecondPass("fgm", epsilon, variables) if method == "fgm" else None
    set_second_pass(model, "fgm", second_pass)
    term = RDrop(alpha, from_logits) if method == "rdrop" else None
    train_step_hook.set_loss_term(model, "rdrop", term)
    return model
