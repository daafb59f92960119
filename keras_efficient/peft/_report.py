"""What of a model trains: the base frozen, the head not; and a report of it."""

import math
import re
from dataclasses import dataclass

from keras_efficient.parametrize._architecture import head_weights
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._weights import all_weights


@dataclass(frozen=True)
class TuningReport:
    """What a way of parameter-efficient tuning set.

    Attributes:
        method: str.
        weights: tuple of the paths of the weights (or layers) it acts on.
        trainable: int, parameters that train, the head's included.
        parameters: int, of the model as it was.
    """

    method: str
    weights: tuple
    trainable: int
    parameters: int

    @classmethod
    def of(cls, model, method, paths):
        trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
        parameters = sum(weight.size for weight in all_weights(model))
        return cls(method, tuple(paths), trainable, parameters)

    @property
    def share(self) -> float:
        """`trainable` as a share of `parameters`."""
        return self.trainable / self.parameters

    def __str__(self):
        return (
            f"{self.method}: {len(self.weights)} weights; {self.trainable:,} parameters train, "
            f"{self.share:.2%} of the model's {self.parameters:,}"
        )


def freeze_base(model, train=None):
    """Freeze all weights but those named by `train` (None: the head's; False: none)."""
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
