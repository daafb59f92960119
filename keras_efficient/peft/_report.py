"""Report of parameter-efficient tuning, and freezing of the base model."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from keras_efficient.architecture._heads import head_weights
from keras_efficient.architecture._weights import all_weights
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import freeze


@dataclass(frozen=True)
class TuningReport:
    """Result of a method of parameter-efficient fine-tuning.

    Attributes:
        method: name of the method or of the adapter.
        weights: tuple of the paths of the weights or layers it acts on.
        trainable: number of trainable parameters, those of the head included.
        parameters: number of parameters of the model before.
        trainable_fraction: `trainable / parameters`.
    """

    method: str
    weights: tuple[str, ...]
    trainable: int
    parameters: int

    @classmethod
    def of(cls, model: Model, method: str, paths: Sequence[str]) -> "TuningReport":
        """Create the report of a method that was applied to the weights at `paths`."""
        trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
        parameters = sum(weight.size for weight in all_weights(model))
        return cls(method, tuple(paths), trainable, parameters)

    @property
    def trainable_fraction(self) -> float:
        """`trainable / parameters`."""
        return self.trainable / self.parameters

    def __str__(self):
        return (
            f"{self.method}: {len(self.weights)} weights; {self.trainable:,} parameters train, "
            f"{self.trainable_fraction:.2%} of the model's {self.parameters:,}"
        )


def freeze_base(model: Model, train: str | bool | None = None) -> None:
    """Freeze all weights of a model except some.

    Args:
        model: a built model.
        train: which weights to leave out: a regular expression searched in their paths, or False
            for none. Default: None, those of the model's heads.
    """
    if train is None:
        kept = head_weights(model)
    elif train is False:
        kept = []
    elif isinstance(train, str):
        kept = [w for w in all_weights(model) if re.search(train, w.path)]
        if not kept:
            raise ValueError(
                "`train` must fit some weights. Received: "
                f"{train!r}, which fits none in {model.name!r}. `print(ke.summary(model))` lists "
                "the paths; False trains none of them."
            )
    else:
        raise TypeError(
            "`train` must be None (the head), False (nothing) or a regular expression. Received: "
            f"{train!r}."
        )
    ids = {id(weight.variable) for weight in kept}
    freeze(model, [w for w in all_weights(model) if id(w.variable) not in ids])
