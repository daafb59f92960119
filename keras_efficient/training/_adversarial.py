"""`ke.adversarial`: train against perturbed embeddings, or against dropout's own noise."""

from keras_efficient import flavor as flavors
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._rdrop import RDrop
from keras_efficient.training._sam import SecondPass, set_second_pass

METHODS = ("fgm", "rdrop")
#: The table of word (token) embeddings in KerasHub, Hugging Face, Model Garden and plain models.
WORD_EMBEDDINGS = r"(token|word)_embedding|shared/|(^|/)[a-z]*embedding(_\d+)?/embeddings"


def adversarial(
    model, method="fgm", *, epsilon=1.0, variables=WORD_EMBEDDINGS, alpha=1.0, from_logits=None
):
    """Add a regulariser of the adversarial family to the model's training step.

    "fgm" moves the word embeddings in the direction that hurts most, takes the gradient there too,
    and applies the sum (costs a second pass and a second all-reduce):

        r = ε · g_E / ‖g_E‖        g = g(θ) + g(θ with E + r)

    "rdrop" runs every example twice, under two dropout masks, and asks the two predictions to
    agree (costs twice the examples per microbatch):

        L = (L₁ + L₂) / 2 + α · (KL(p₁‖p₂) + KL(p₂‖p₁)) / 2

    Both work under `ke.accumulate` and on replicas. FGM's `g_E` is the gradient of the whole
    batch, so a step is the same however the batch is split.

    Args:
        model: a Keras 3 or tf_keras model, Hugging Face's included; before or after `compile`.
        method: "fgm", "rdrop", or None to take either away.
        epsilon: float > 0, ε of "fgm": the length of the move.
        variables: regular expression for the paths of the variables "fgm" moves.
        alpha: float > 0, α of "rdrop".
        from_logits: whether the outputs are logits, for "rdrop". None (default) asks the compiled
            loss in `fit`'s first step, and takes Hugging Face's outputs for logits.

    Returns:
        The model.

    Raises:
        ValueError: an unknown method, a number that is not positive; in `fit`, no variable
            matches; SAM is on (for "fgm").

    Example:
        >>> ke.adversarial(model, "rdrop", alpha=1.0)
        >>> model.fit(dataset)

    Reference:
        Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification"
        (FGM); Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks".
    """
    flavors.of(model)
    if method is not None and method not in METHODS:
        raise ValueError(
            f"`method` must be one of {METHODS}, or None to take it away. Received: {method!r}."
        )
    for name, value in (("epsilon", epsilon), ("alpha", alpha)):
        if not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"`{name}` must be a number > 0. Received: {value!r}.")
    second_pass = SecondPass("fgm", epsilon, variables) if method == "fgm" else None
    set_second_pass(model, "fgm", second_pass)
    train_step_hook.attach(model).penalty = RDrop(alpha, from_logits) if method == "rdrop" else None
    train_step_hook.detach_if_idle(model)
    return model
