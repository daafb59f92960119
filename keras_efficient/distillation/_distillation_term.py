"""The terms of distillation in the loss of a training step."""

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_efficient.distillation._attention_maps import MAP_METRICS, attention_distance
from keras_efficient.distillation._block_recorder import BlockRecorder
from keras_efficient.distillation._contrastive_loss import contrastive_loss
from keras_efficient.distillation._hidden_states import (
    METRICS,
    hidden_state_distance,
    token_mean,
)
from keras_efficient.distillation._layer_mapping import map_layers
from keras_efficient.distillation._projection import Projection
from keras_efficient.distillation._relations import relation_divergence
from keras_efficient.distillation._soft_targets import soft_target_divergence
from keras_efficient.distillation._teacher import Teacher, chosen_outputs
from keras_efficient.training._logits import logits_of, wide
from keras_efficient.training._loss_terms import LossTerm, predictions


def _check_positive(name, value):
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"`{name}` must be a number > 0. Received: {value!r}.")


def _check_projection(projection, learning_rate):
    if projection not in (None, True, False):
        raise ValueError(f"`projection` must be True, False or None. Received: {projection!r}.")
    _check_positive("learning_rate", learning_rate)


@dataclass(frozen=True)
class HiddenStates:
    """Distillation of the hidden states after Transformer blocks, for `ke.distill(hidden=…)`.

    Attributes:
        weight: float > 0, weight of the term, a mean over the pairs of blocks. Default: 1.0.
        metric: "mse" or "cosine", as in `hidden_state_distance`. Default: "mse".
        projection: whether the student's hidden states are multiplied by a matrix first, which is
            one for all blocks and trains with the student; or None, where the widths differ.
            Default: None.
        learning_rate: float > 0, learning rate of this matrix, which Adam trains whatever the
            student's optimizer is. Default: 0.001.

    Raises:
        ValueError: a value is not accepted.

    Examples:
        >>> ke.distillation.HiddenStates(0.5, metric="cosine").metric
        'cosine'

    Reference:
        Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding".
    """

    weight: float = 1.0
    metric: str = "mse"
    projection: bool | None = None
    learning_rate: float = 1e-3

    def __post_init__(self):
        _check_positive("weight", self.weight)
        _check_projection(self.projection, self.learning_rate)
        if self.metric not in METRICS:
            raise ValueError(f"`metric` must be one of {METRICS}. Received: {self.metric!r}.")

    def distance(self, student, teacher):
        """Return the distance of two `BlockRecord`s, `[examples]`."""
        return hidden_state_distance(
            student.hidden,
            teacher.hidden,
            student.mask,
            metric=self.metric,
            projection=student.projection,
        )


@dataclass(frozen=True, eq=False)
class Contrastive:
    """Contrastive distillation of pooled hidden states, for `ke.distill(hidden=…)`.

    The mean of the hidden states of an example's real tokens is to be nearer to the teacher's for
    this example than to the teacher's for others, the negatives. These are computed once, by
    `ke.distill`, and kept, so that k microbatches equal one batch; CRD keeps a memory of its
    training set in the same way. The last block is the usual choice: `layers="last"`.

    Attributes:
        negatives: features of a batch of other examples, as the student receives them, such as
            some hundred training examples. Those of the same vector as the example at hand are
            left out.
        weight: float > 0, weight of the term, a mean over the pairs of blocks. Default: 1.0.
        temperature: float > 0, as in `contrastive_loss`. Default: 0.1.
        projection: as in `HiddenStates`. Default: None.
        learning_rate: likewise. Default: 0.001.

    Raises:
        ValueError: a value is not accepted.

    Examples:
        >>> import numpy as np
        >>> ke.distillation.Contrastive(np.ones((8, 5), "int32"), temperature=0.2).weight
        1.0

    Reference:
        Tian et al. 2020, "Contrastive Representation Distillation"; Sun et al. 2020, "Contrastive
        Distillation on Intermediate Representations for Language Model Compression".
    """

    negatives: Any
    weight: float = 1.0
    temperature: float = 0.1
    projection: bool | None = None
    learning_rate: float = 1e-3

    def __post_init__(self):
        _check_positive("weight", self.weight)
        _check_positive("temperature", self.temperature)
        _check_projection(self.projection, self.learning_rate)

    def distance(self, student, teacher):
        """Return the loss of two `BlockRecord`s, `[examples]`."""
        return contrastive_loss(
            pooled(student, student.mask),
            pooled(teacher, student.mask),
            teacher.negatives,
            temperature=self.temperature,
            projection=student.projection,
        )


#: The losses of hidden states, for which a student's are projected where widths differ.
OF_HIDDEN_STATES = (HiddenStates, Contrastive)


def pooled(record, mask):
    """Return the mean hidden state of the real tokens of each example, `[examples, width]`."""
    return token_mean(wide(record.hidden), mask)


@dataclass(frozen=True)
class AttentionMaps:
    """Distillation of attention probabilities, head by head, for `ke.distill(attention=…)`.

    Attributes:
        weight: float > 0, weight of the term, a mean over the pairs of blocks. Default: 1.0.
        metric: "kl" or "mse", as in `attention_distance`. Default: "kl".

    Raises:
        ValueError: a value is not accepted.

    Examples:
        >>> ke.distillation.AttentionMaps(metric="mse").weight
        1.0

    Reference:
        Jiao et al. 2020, "TinyBERT"; Wang et al. 2020, "MiniLM".
    """

    weight: float = 1.0
    metric: str = "kl"

    def __post_init__(self):
        _check_positive("weight", self.weight)
        if self.metric not in MAP_METRICS:
            raise ValueError(f"`metric` must be one of {MAP_METRICS}. Received: {self.metric!r}.")

    def distance(self, student, teacher):
        """Return the distance of two `BlockRecord`s, `[examples]`."""
        return attention_distance(
            student.scores(), teacher.scores(), student.mask, metric=self.metric
        )


@dataclass(frozen=True)
class Relations:
    """Distillation of relations of queries, keys and values, for `ke.distill(attention=…)`.

    Student and teacher may differ in their widths and numbers of heads. MiniLMv2 distils the last
    block of the student: `ke.distill(…, attention=Relations(), layers="last")`.

    Attributes:
        weight: float > 0, weight of the term, a mean over queries, keys and values and over the
            pairs of blocks. Default: 1.0.
        heads: int > 0, number of relation heads, which divides the widths of both; or None for the
            student's number of heads. Default: None.

    Raises:
        ValueError: a value is not accepted.

    Examples:
        >>> ke.distillation.Relations(heads=24).heads
        24

    Reference:
        Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for
        Compressing Pretrained Transformers".
    """

    weight: float = 1.0
    heads: int | None = None

    def __post_init__(self):
        _check_positive("weight", self.weight)
        if self.heads is not None and (type(self.heads) is not int or self.heads < 1):
            raise ValueError(f"`heads` must be an int > 0 or None. Received: {self.heads!r}.")

    def distance(self, student, teacher):
        """Return the divergence of two `BlockRecord`s, `[examples]`."""
        heads = self.heads or student.block.attention.heads
        pairs = zip(student.projections(), teacher.projections(), strict=True)
        found = [relation_divergence(s, t, student.mask, heads=heads) for s, t in pairs]
        return tf.add_n(found) / 3


@dataclass(frozen=True, eq=False)
class Distillation(LossTerm):
    """The distillation of a student, a term of its training step; `ke.distill` documents it.

    Attributes:
        teachers: tuple of the `Teacher`s.
        alpha: float, weight of the loss of the labels.
        temperature: float.
        divergence: str or None.
        from_logits: bool or None.
        between_blocks: tuple of `HiddenStates`, `Contrastive`, `AttentionMaps` and `Relations`.
        layers: as in `map_layers`.
        recorder: the `BlockRecorder` of the student, if there is anything `between_blocks`.
        projection: the `Projection` of its hidden states, or None.
        negatives: for `Contrastive`, the teacher's pooled hidden states after each of its blocks.
    """

    teachers: tuple[Teacher, ...]
    alpha: float
    temperature: float
    divergence: str | None
    from_logits: bool | None
    between_blocks: tuple
    layers: str | Mapping[int, int]
    recorder: BlockRecorder | None
    projection: Projection | None = None
    negatives: tuple = ()

    @property
    def variables(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return () if self.projection is None else (self.projection.matrix,)

    @property
    def state(self):
        return {} if self.projection is None else self.projection.state

    def update(self, gradients):
        if self.projection is not None and gradients[0] is not None:
            self.projection.update(gradients[0])

    @property
    def loss_factor(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.alpha

    @contextmanager
    def watching(self, flavor, model, part):
        self._check_xla(model)
        x, _, _ = flavor.keras.utils.unpack_x_y_sample_weight(part)
        outputs, theirs = self._ask(x)
        record = nullcontext([]) if self.recorder is None else self.recorder.recording()
        with ExitStack() as stack:
            ours = stack.enter_context(record)

            def term(y_pred, weights):
                total = []
                if self.divergence is not None and self.alpha < 1:
                    soft = self._soft(flavor, model, y_pred, outputs, weights)
                    total.append((1 - self.alpha) * soft)
                if self.between_blocks:
                    total.append(self._between(ours, theirs, weights[0]))
                return tf.add_n(total)

            yield term

    def _check_xla(self, model):
        names = [teacher.name for teacher in self.teachers if not teacher.compiles]
        if names and getattr(model, "jit_compile", False):
            raise ValueError(
                f"XLA cannot compile this teacher. Received: {names[0]}, for a student with "
                "jit_compile=True, which Keras 3 also chooses by itself. Pass jit_compile=False "
                "to `compile`."
            )

    def _ask(self, x):
        """Return what the teachers return, and the `BlockRecord`s of the only one, if needed."""
        recorder = getattr(self.teachers[0], "recorder", None)
        record = nullcontext([]) if recorder is None else recorder.recording()
        with record as records:
            outputs = [teacher(x) for teacher in self.teachers]
        return outputs, records

    def _soft(self, flavor, model, y_pred, outputs, weights):
        named = hasattr(y_pred, "logits") or hasattr(y_pred, "start_logits")
        from_logits = self.from_logits or named
        if self.from_logits is None and not named:
            from_logits = flavor.from_logits(model)
        independent = flavor.has_independent_labels(model)
        if self.from_logits is None and flavor.predicts_numbers(model):
            if self.divergence != "mse":
                raise ValueError(
                    "Outputs of a regression are numbers and no probabilities. Received: "
                    f"divergence={self.divergence!r} for a loss such as the mean squared error. "
                    "Pass divergence='mse', or from_logits=True if they are logits."
                )
            ours = list(map(wide, predictions(y_pred)))
            theirs = [list(map(wide, chosen_outputs(output))) for output in outputs]
        else:
            ours = [logits_of(output, from_logits, independent) for output in predictions(y_pred)]
            theirs = [
                teacher.as_logits(output, from_logits, independent)
                for teacher, output in zip(self.teachers, outputs, strict=True)
            ]
        terms = []
        for number, (student, weight) in enumerate(zip(ours, weights, strict=True)):
            each = []
            for teacher, logits in zip(self.teachers, theirs, strict=True):
                self._check_outputs(teacher, ours, logits)
                each.append(logits[number])
            value = soft_target_divergence(
                student,
                average_logits(each, self.temperature, self.divergence == "mse"),
                temperature=self.temperature,
                divergence=self.divergence or "",
            )
            terms.append(weight.mean(value))
        return tf.add_n(terms)

    def _check_outputs(self, teacher, ours, theirs):
        shapes = [[tuple(x.shape[1:]) for x in outputs] for outputs in (ours, theirs)]
        # Of logits over tokens, the number may be unknown before they are computed.
        agree = len(ours) == len(theirs) and all(
            len(a) == len(b) and (a[-1] == b[-1] or None in (a[-1], b[-1]))
            for a, b in zip(*shapes, strict=True)
        )
        if not agree:
            raise ValueError(
                "Student and teacher must have the same outputs: labels, or the vocabulary of a "
                f"language model. Received: outputs of shapes {shapes[0]} (per example) of the "
                f"student and {shapes[1]} of {teacher.name}. Train both for the same labels, or "
                "distil blocks alone: divergence=None."
            )

    def _between(self, ours, theirs, weights):
        terms = []
        for record in ours:
            record.projection = None if self.projection is None else self.projection.matrix
        for record, negatives in zip(theirs, self.negatives, strict=False):
            record.negatives = negatives
        for loss in self.between_blocks:
            pairs = map_layers(self.layers, len(ours), len(theirs))
            distances = [loss.distance(ours[s], theirs[t]) for s, t in pairs]
            terms.append(loss.weight * weights.mean(tf.add_n(distances) / len(distances)))
        return tf.add_n(terms)


def average_logits(logits: list, temperature: float, plain: bool) -> Any:
    """Return logits whose softmax at a temperature is the mean of the teachers' probabilities.

    Args:
        logits: list of tensors, one per teacher.
        temperature: float.
        plain: whether to average the logits themselves instead.
    """
    if len(logits) == 1:
        return logits[0]
    number = tf.cast(len(logits), logits[0].dtype)
    if plain:
        return tf.add_n(logits) / number
    logs = tf.stack([tf.nn.log_softmax(x / temperature) for x in logits])
    return (tf.reduce_logsumexp(logs, 0) - tf.math.log(number)) * temperature
