"""BitFit: train a model's biases and nothing else."""

from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import original_class
from keras_efficient.parametrize._weights import all_weights
from keras_efficient.peft._report import TuningReport, freeze_base


def bitfit(model, *, train=None, norms=False) -> TuningReport:
    """Freeze a model but for its biases, those of normalisation layers (beta) included.

    Acts from the next `fit` on, before or after `compile`. Nothing is added to the model, so that
    it is saved and exported as ever; `ke.peft.unfreeze(model)` lets all train again.

    Args:
        model: a built Keras 3 or tf_keras model.
        train: what else trains: None (default) the model's head, its last layer with a kernel; a
            regular expression searched in the weights' paths; False: nothing.
        norms: whether the scales of normalisation layers train as well. Default False.

    Returns:
        A `Tuned`, to print.

    Raises:
        ValueError: the model has no biases, is not built, or `train` fits no weight.

    Example:
        >>> print(ke.bitfit(model))  # doctest: +ELLIPSIS
        bitfit: ...

    Reference:
        Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
        Masked Language-models".
    """
    check_model(model, "ke.bitfit")
    chosen = [w for w in all_weights(model) if _is_bias(w) or (norms and _is_of_norm(w))]
    if not chosen:
        raise ValueError(
            f"ke.bitfit trains biases. Received: {model.name!r}, which has none. Use ke.lora or "
            "ke.adapters."
        )
    freeze_base(model, train)
    freeze(model, chosen, trainable=True)
    return TuningReport.of(model, "bitfit", [weight.path for weight in chosen])


def _is_bias(weight):
    return weight.attribute in ("bias", "beta")


def _is_of_norm(weight):
    return "norm" in original_class(weight.layer).__name__.lower()
