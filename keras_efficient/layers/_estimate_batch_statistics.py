"""`estimate_batch_statistics`: averages of batch normalization from data instead of training."""

import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.flavor import Model
from keras_efficient.layers._batch_normalization import custom_objects
from keras_efficient.layers._moments import masked_moments


def estimate_batch_statistics(model: Model, data: Iterable, batches: int = 50) -> int:
    """Set the averages of a model's `MaskedBatchNormalization` layers to the moments over data.

    The moving averages lag behind the weights, by about 1 / (1 - momentum) updates. Here the model
    runs on some of its training data, without dropout, and every layer normalizes each batch by the
    batch's own moments. Afterwards its averages are the moments over the unmasked tokens of all
    these batches. Layers with `trainable = False` keep theirs.

    Args:
        model: a built Keras 3 or tf_keras model.
        data: iterable of batches as `fit` takes them, `x` or `(x, y)`, of the size that the model
            trains with. On several workers, the same batches on each.
        batches: int >= 1, number of batches to use; fewer if `data` ends. Default: 50.

    Returns:
        The number of batches used.

    Raises:
        InputError: the model has no such layer, or `data` has no batch.
        ValueError: `batches` is below 1.

    Examples:
        >>> import keras, numpy as np
        >>> norm = ke.layers.MaskedBatchNormalization()
        >>> model = keras.Sequential([keras.Input((1,)), norm])
        >>> ke.layers.estimate_batch_statistics(model, [np.array([[1.0], [3.0]])])
        1
        >>> norm.moving_mean.numpy().tolist(), norm.moving_variance.numpy().tolist()
        ([2.0], [1.0])

    Reference:
        Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (PreciseBN).
    """
    if type(batches) is not int or batches < 1:
        raise ValueError(f"`batches` must be a positive int. Received: {batches!r}.")
    flavor = flavors.of(model)
    (cls,) = custom_objects(model).values()
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, cls)]
    if not layers:
        raise InputError(
            "Batch statistics are those of MaskedBatchNormalization layers. Received: "
            f"{model.name!r}, which has none. Leave this out."
        )
    found = [(layer, _Moments()) for layer in layers if layer.trainable]
    with ExitStack() as stack:
        stack.enter_context(model.distribute_strategy.scope())
        for layer, moments in found:
            stack.callback(setattr, layer, "observed", None)
            layer.observed = moments
        chosen = itertools.islice(data, batches)
        used = flavor.run(model, (b[0] if isinstance(b, tuple) else b for b in chosen))
        if not used:
            raise InputError(
                "Batch statistics need data. Received: no batch. Give some of the training data; "
                "an iterator that was used up has to be made again."
            )
        for layer, moments in found:
            moments.assign_to(layer)
    return used


class _Moments:
    """Moments over several batches, in float64."""

    def __init__(self):
        self.count = self.mean = self.squares = 0.0

    def __call__(self, x: Any, mask: Any) -> tuple:
        """Include a batch; return its mean, variance and count."""
        moments = masked_moments(x, mask)
        mean, variance, count = (value.numpy().astype("float64") for value in moments)
        if count:
            total, difference = self.count + count, mean - self.mean
            self.squares += variance * count + difference**2 * self.count * count / total
            self.mean += difference * count / total
            self.count = total
        return moments

    def assign_to(self, layer: Any) -> None:
        if self.count:
            layer.moving_mean.assign(self.mean)
            layer.moving_variance.assign(self.squares / self.count)
            # As after many updates.
            layer.moving_weight.assign(1.0)
