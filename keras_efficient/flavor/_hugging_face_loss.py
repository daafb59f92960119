"""The loss that a Hugging Face model computes itself, and what that loss is divided by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import tensorflow as tf
import tf_keras

from keras_efficient.flavor import _tf_keras_losses as losses
from keras_efficient.flavor._forward import LossWeights
from keras_efficient.flavor._patched import patched
from keras_efficient.flavor._typing import Model

#: The label that most losses of transformers ignore.
_IGNORED = -100

# The classes of transformers that define `hf_compute_loss`, by what their function divides by.
#: The examples: one loss per example.
_PER_EXAMPLE = {
    "TFMultipleChoiceLoss",
    "TFNextSentencePredictionLoss",
    "TFQuestionAnsweringLoss",
    "TFSequenceClassificationLoss",
}
#: The labels that count.
_COUNTED: dict[str, Callable] = {
    "TFCausalLanguageModelingLoss": lambda config, labels: labels != _IGNORED,
    "TFTokenClassificationLoss": lambda config, labels: labels >= 0,
    "TFLEDForConditionalGeneration": lambda config, labels: labels != config.pad_token_id,
    "TFMobileViTForSemanticSegmentation": lambda config, labels: (
        labels != config.semantic_loss_ignore_index
    ),
    "TFSegformerForSemanticSegmentation": lambda config, labels: (
        labels != config.semantic_loss_ignore_index
    ),
}
#: The labels other than -100 of each of two terms.
_TWO_TERMS = {
    "TFAlbertPreTrainingLoss": ("labels", "sentence_order_label"),
    "TFBertPreTrainingLoss": ("labels", "next_sentence_label"),
    "TFMobileBertPreTrainingLoss": ("labels", "next_sentence_label"),
}


class HuggingFaceLoss:
    """The loss of a model of transformers that is compiled without a loss.

    Attributes:
        per_example: bool, whether the model computes one loss per example.
        terms: names of the labels of the loss's terms if it is a sum of two means, else ().
    """

    def __init__(self, model: Model):
        self.model = model
        self.owner = _owner(type(model))
        # ALBERT's takes both terms into one vector.
        self.legacy = bool(getattr(model.config, "tf_legacy_loss", False))
        self.terms = () if self._mixed else _TWO_TERMS.get(self.owner, ())
        selects = self.legacy and self.owner == "TFNextSentencePredictionLoss"
        self.per_example = self.owner in _PER_EXAMPLE and not selects

    @property
    def _mixed(self) -> bool:
        return self.legacy and self.owner == "TFAlbertPreTrainingLoss"

    @property
    def known(self) -> bool:
        """Whether the divisor follows from the model's class alone."""
        masked = self.owner in _COUNTED and not self.legacy
        return masked or self.per_example or bool(self.terms)

    @contextmanager
    def recorded(self, data: Any) -> Iterator[Callable[[], Any]]:
        """Yield a function that returns the `LossWeights` of the loss computed inside the block.

        It returns None if the model's own loss has not been computed.

        Raises:
            ValueError: from that function, if the divisor is not known.
        """
        calls: list = []
        compute: Any = getattr(self.model, "hf_compute_loss", None)

        def hf_compute_loss(*args, **kwargs):
            calls.append((args, kwargs))
            return compute(*args, **kwargs)

        record = nullcontext()
        if compute is not None:
            record = patched(self.model, hf_compute_loss=hf_compute_loss)
        with record, losses.recorded() as found:
            signature = None if compute is None else inspect.signature(compute)
            yield tf.autograph.experimental.do_not_convert(
                lambda: self._weights(data, signature, calls, found)
            )

    def _weights(self, data, signature, calls, found) -> Any:
        if not calls and not found:
            return None
        if self.owner in _COUNTED and not self.legacy and len(calls) == 1:
            _, _, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
            if sample_weight is not None:
                raise _sample_weight_error(self.model)
            args, kwargs = calls[0]
            labels = signature.bind(*args, **kwargs).arguments["labels"]
            counted = _COUNTED[self.owner](self.model.config, labels)
            number = tf.math.count_nonzero(counted, dtype=tf.int32)
            return LossWeights(number, tf.ones_like(labels, tf.float32), mask=counted)
        # The library averages a vector of losses, so it divides by the vector's length.
        vector = found[0].values if found else None
        if vector is None or self._mixed or vector.shape.rank != 1 or vector.shape[0] == 1:
            raise _unknown_error(self.model)
        return replace(found[0], divisor=tf.shape(vector)[0])

    def counts(self, data: Any) -> list:
        """Return the divisors of the two terms on a batch, scalar float32 tensors."""
        x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise _sample_weight_error(self.model)
        outputs = self.model.get_label_to_output_name_mapping()
        given = [part for part in (x, y) if isinstance(part, dict)]
        counts = []
        for name in self.terms:
            keys = (name, outputs.get(name))
            labels = [part[key] for part in given for key in keys if key in part]
            if not labels:
                raise ValueError(
                    f"{type(self.model).__name__} computes its loss from the labels "
                    f"{list(self.terms)}. Received: {sorted(set().union(*given))}. Pass all of "
                    "them by name, among the features or as a dict of labels."
                )
            counts.append(tf.reduce_sum(tf.cast(labels[0] != _IGNORED, tf.float32)))
        return counts

    @contextmanager
    def divided_by(self, totals: list, factor: Any) -> Iterator[None]:
        """Divide the sums of the two terms by `totals` inside the block, and not by their counts.

        Args:
            totals: two scalar float32 tensors.
            factor: scalar, multiplies the loss.
        """

        def hf_compute_loss(labels, logits):
            terms = [
                _masked_sum(labels[name], scores) / tf.maximum(total, 1.0)
                for name, scores, total in zip(self.terms, logits, totals, strict=True)
            ]
            return tf.reshape(tf.add_n(terms) * tf.cast(factor, tf.float32), (1,))

        with patched(self.model, hf_compute_loss=hf_compute_loss):
            yield


def own_loss(model: Model) -> HuggingFaceLoss | None:
    """Return the loss that `model` computes itself; None if it has a compiled loss."""
    return HuggingFaceLoss(model) if getattr(model, "_using_dummy_loss", False) else None


def _owner(cls) -> str:
    """Return the name of the class of transformers whose `hf_compute_loss` a model has, or ""."""
    for base in cls.__mro__:
        if "hf_compute_loss" in vars(base):
            return base.__name__ if base.__module__.startswith("transformers.") else ""
    return ""


def _masked_sum(labels, scores):
    """Return the sum of the cross-entropies of labels other than -100."""
    scores = tf.reshape(scores, (*_shape(labels), scores.shape[-1]))
    each = tf_keras.losses.sparse_categorical_crossentropy(
        tf.nn.relu(labels), scores, from_logits=True
    )
    return tf.reduce_sum(tf.cast(each, tf.float32) * tf.cast(labels != _IGNORED, tf.float32))


def _shape(tensor):
    dynamic = tf.shape(tensor)
    return [dynamic[i] if n is None else n for i, n in enumerate(tensor.shape)]


_REMEDY = (
    "Give the weight of a microbatch as ke.accumulate(model, …, weight=…), or compile the model "
    "with a Keras loss."
)


def _unknown_error(model):
    return ValueError(
        "An update from several microbatches, replicas or batches needs to know what a loss is "
        f"divided by. Received: {type(model).__name__}, which computes a loss that is neither one "
        f"value per example nor known to be a mean over certain labels. {_REMEDY}"
    )


def _sample_weight_error(model):
    return ValueError(
        "Sample weights need a loss per example if several microbatches, replicas or batches make "
        f"an update. Received: sample weights for {type(model).__name__}, which averages its loss "
        f"over labels before they apply. {_REMEDY}"
    )
