"""BitFit: train only the biases of a model."""

from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._weights import all_weights
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._checks import check_model
from keras_efficient.peft._report import TuningReport, freeze_base


def bitfit(model: Model, *, train: str | bool | None = None, norms: bool = False) -> TuningReport:
    """Freeze a model except its biases, including the beta of normalisation layers.

    Takes effect in the next `fit`; call it before or after `compile`. Nothing is added to the
    model, which is saved and exported as usual. `ke.peft.unfreeze(model)` undoes it.

    Args:
        model: a built Keras 3 or tf_keras model.
        train: which other weights train. A regular expression is searched in their paths; False
            means none. Default: None, the model's heads: the last layer with a kernel before
            each output.
        norms: whether the scales of normalisation layers train too. Default: False.

    Returns:
        A `TuningReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model, or `train` has another type.
        ValueError: the model has no biases or is not built, `train` matches no weight, or another
            strategy's scope is entered.

    Examples:
        >>> print(ke.bitfit(model))  # doctest: +ELLIPSIS
        bitfit: ...

    Reference:
        Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
        Masked Language-models".
    """
    check_model(model, "ke.bitfit")
    weights = [w for w in all_weights(model) if _is_bias(w) or (norms and _is_of_norm(w))]
    if not weights:
        raise ValueError(
            f"ke.bitfit trains biases. Received: {model.name!r}, which has none. Use ke.lora or "
            "ke.adapters."
        )
    freeze_base(model, train)
    freeze(model, weights, trainable=True)
    return TuningReport.of(model, "bitfit", [weight.path for weight in weights])


def _is_bias(weight):
    return weight.attribute in ("bias", "beta")


def _is_of_norm(weight):
    return "norm" in original_class(weight.layer).__name__.lower()
