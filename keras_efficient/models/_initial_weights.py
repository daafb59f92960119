"""Initial weights of a Transformer that is trained from scratch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np


def initial_weights(
    variables: Iterable[Any], name_of: Callable[[Any], str], seed: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield floating-point variables with their initial values.

    Scales of norms are 1 and biases 0; all else is normal with standard deviation 0.02, as in BERT
    and GPT-2.

    Args:
        variables: Variables of a model.
        name_of: Function that returns the name or path of a variable.
        seed: Seed of the random numbers.
    """
    random = np.random.default_rng(seed)
    for variable in variables:
        if "float" not in str(variable.dtype):
            continue
        name = name_of(variable).partition(":")[0].rpartition("/")[2]
        if name in ("gamma", "scale"):
            value = np.ones(variable.shape)
        elif name in ("beta", "bias") or name.endswith("_bias"):
            value = np.zeros(variable.shape)
        else:
            value = random.normal(0.0, 0.02, variable.shape)
        yield variable, value.astype("float32")
