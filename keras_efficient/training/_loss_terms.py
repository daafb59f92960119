"""Terms that are added to the loss of every microbatch, such as R-Drop's and distillation's."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import tensorflow as tf

from keras_efficient.flavor import Model
from keras_efficient.flavor._forward import LossWeights
from keras_efficient.flavor._patched import patched
from keras_efficient.training._batch_split import MASKS
from keras_efficient.training._microbatch_loop import batch_size


class LossTerm:
    """A term that is added to the loss of every microbatch.

    Attributes:
        copies: int, how often `prepare` returns each example.
        loss_factor: float, multiplies the loss of the labels.
        variables: tuple of `tf.Variable`s that train with the model and are not part of it,
            created in the scope of its strategy.
        state: dict of the `tf.Variable`s that `update` changes, by name.
    """

    copies = 1
    loss_factor = 1.0
    variables: tuple = ()

    @property
    def state(self) -> dict:
        return {}

    def prepare(self, part: Any) -> Any:
        """Return the batch that the model runs on in place of a microbatch."""
        return part

    @contextmanager
    def watching(self, flavor: Any, model: Model, part: Any) -> Iterator[Callable]:
        """Yield the function that computes the term, in a context in which the model runs.

        What the term needs of other models is computed on entering, outside of gradient tapes.

        Args:
            flavor: the model's flavor.
            model: the model.
            part: the microbatch, as `prepare` returned it.

        Yields:
            Function of the model's outputs and a list of `LossWeights`, one per output. It returns
            the term, a scalar that is averaged as the loss is.
        """
        raise NotImplementedError
        yield

    def update(self, gradients: list) -> None:
        """Update `variables`, in the graph on every replica, with each update of the model.

        Args:
            gradients: their gradients, the same on all replicas; None for those not reached.
        """
        return


class LossTerms:
    """The terms of a training step, on one microbatch.

    Args:
        terms: list of the `LossTerm`s.
        flavor: the model's flavor.
        model: the model.
        part: the microbatch.

    Attributes:
        part: the batch that the model runs on.
        copies: float, how often it contains each example.
        factor: float, multiplies the loss of the labels.
    """

    def __init__(self, terms: list, flavor: Any, model: Model, part: Any):
        self._terms, self._flavor, self._model = terms, flavor, model
        self.copies, self.factor = 1.0, 1.0
        for term in terms:
            part = term.prepare(part)
            self.copies *= term.copies
            self.factor *= term.loss_factor
        self.part = part

    def __bool__(self):
        return bool(self._terms)

    @property
    def labelled(self) -> bool:
        """Whether the loss of the labels is computed: there are some, or it is needed."""
        _, y, _ = _unpacked(self._flavor, self.part)
        return y is not None or self.factor != 0

    @contextmanager
    def watching(self) -> Iterator[Callable]:
        """Yield a function of the model's outputs and `LossWeights` that returns the term.

        It returns None if there are no terms.
        """
        with ExitStack() as stack:
            functions = [
                stack.enter_context(term.watching(self._flavor, self._model, self.part))
                for term in self._terms
            ]

            def total(y_pred, recorded):
                if not functions:
                    return None
                weights = self._weights(y_pred, recorded)
                return tf.add_n([tf.cast(f(y_pred, weights), tf.float32) for f in functions])

            yield total

    def _weights(self, y_pred, recorded):
        """One `LossWeights` per output: the loss's own, if they are known."""
        outputs = predictions(y_pred)
        known = [w for w in recorded if w is not None and w.values.shape.rank]
        # The loss of a Hugging Face model that is a scalar by then has one value.
        known = [w for w in known if w.values.shape[0] != 1 or outputs[0].shape[0] == 1]
        if len(known) == len(outputs):
            return [_as_long(w, output) for w, output in zip(known, outputs, strict=True)]
        return [self._by_examples(output) for output in outputs]

    def _by_examples(self, output):
        """Weights for a mean over examples, of their sample weights and real tokens."""
        x, _, sample_weight = _unpacked(self._flavor, self.part)
        weights = LossWeights(None, output[..., 0], sample_weight).weights
        if weights.shape.rank > 1:
            mask = getattr(output, "_keras_mask", None)
            if mask is None and isinstance(x, dict):
                mask = next((x[name] for name in MASKS if x.get(name) is not None), None)
            if mask is not None and mask.shape.rank == weights.shape.rank:
                real = tf.cast(tf.cast(mask, tf.bool), weights.dtype)
                weights *= tf.math.divide_no_nan(real, tf.reduce_sum(real, -1, keepdims=True))
            else:
                size = tf.size(weights) / tf.maximum(1, tf.shape(weights)[0])
                weights /= tf.cast(size, weights.dtype)
        return LossWeights(batch_size(self.part), output[..., 0], weights)


def predictions(y_pred: Any) -> list:
    """Return a model's outputs as a list of tensors, the logits of a Hugging Face model alone."""
    if hasattr(y_pred, "to_tuple"):
        return [value for name, value in y_pred.items() if name.endswith("logits")]
    return tf.nest.flatten(y_pred)


@contextmanager
def last_outputs(model: Model) -> Iterator[list]:
    """Yield a list that holds what the last call of the model in the block returned."""
    plain, outputs = model.call, []

    def call(*args, **kwargs):
        outputs[:] = [plain(*args, **kwargs)]
        return outputs[0]

    with patched(model, call=call):
        yield outputs


def _as_long(weights, output):
    """Weights for all tokens, of a language model whose last one has no label."""
    values = weights.values
    if values.shape.rank != 2 or output.shape.rank != 3 or weights.mask is None:
        return weights
    if values.shape[1] is not None and values.shape[1] == output.shape[1]:
        return weights
    missing = [[0, 0], [0, tf.shape(output)[1] - tf.shape(values)[1]]]
    return replace(
        weights,
        values=tf.pad(values, missing),
        mask=tf.pad(tf.cast(weights.mask, tf.float32), missing),
    )


def _unpacked(flavor, part):
    return flavor.keras.utils.unpack_x_y_sample_weight(part)
