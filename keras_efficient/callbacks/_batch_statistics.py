"""Averages of batch normalization estimated over data, before evaluations and at the end."""

from collections.abc import Iterable

from keras_efficient.flavor import Callback
from keras_efficient.layers._estimate_batch_statistics import estimate_batch_statistics


class BatchStatistics(Callback):
    """Estimate the averages of batch normalization before every validation and at the end of `fit`.

    It calls `ke.layers.estimate_batch_statistics` on some of the training data, which costs the
    forward passes of `batches` batches each time. Place it before callbacks that save the model.
    Models without batch normalization do not need it; those with layer normalization never do.

    Args:
        data: iterable of batches as `fit` takes them, from which every estimate draws anew: a
            `tf.data.Dataset`, not an iterator.
        batches: int >= 1, number of batches to use. Default: 50.

    Raises:
        ValueError: `batches` is below 1.
        InputError: in `fit`, if the model has no `MaskedBatchNormalization`, or `data` no batch.

    Examples:
        >>> import keras, numpy as np
        >>> norm, x = ke.layers.MaskedBatchNormalization(), np.array([[1.0], [3.0]])
        >>> model = keras.Sequential([keras.Input((1,)), norm])
        >>> model.compile("sgd", "mse")
        >>> statistics = ke.callbacks.BatchStatistics([x])
        >>> history = model.fit(x, x, verbose=0, callbacks=[statistics])
        >>> norm.moving_mean.numpy().tolist()
        [2.0]

    Reference:
        Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (PreciseBN).
    """

    def __init__(self, data: Iterable, batches: int = 50):
        if type(batches) is not int or batches < 1:
            raise ValueError(f"`batches` must be a positive int. Received: {batches!r}.")
        self.data, self.batches = data, batches

    def on_test_begin(self, logs: dict | None = None):
        self._estimate()

    def on_train_end(self, logs: dict | None = None):
        self._estimate()

    def _estimate(self) -> None:
        estimate_batch_statistics(self.model, self.data, self.batches)
