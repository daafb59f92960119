"""How the next token is chosen: the most probable one, at random, or by beam search."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.flavor._typing import Tensor

#: Logits of tokens that must not be chosen; finite, so that sums and differences are numbers.
NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Take the most probable token.

    Examples:
        >>> ke.generation.Greedy()
        Greedy()
    """

    def choose(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return int32 `[rows]`, the most probable token of each row."""
        return tf.argmax(logits, axis=-1, output_type=tf.int32)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw the next token from the most probable ones.

    Args:
        temperature: Number above 0 that the logits are divided by; below 1 it makes probable tokens
            more probable. Default: 1.0.
        top_k: Draw from this number of most probable tokens. Default: None, all.
        top_p: Draw from the smallest set of most probable tokens whose probabilities add up to at
            least this number, above 0 and at most 1. Applied after `top_k`. Default: 1.0, all.
        seed: Integer, or int32 scalar tensor. The same seed and batch give the same tokens.
            Default: 0.

    Raises:
        InputError: An argument is out of range.

    Examples:
        >>> ke.generation.Sample(top_p=0.9)
        Sample(temperature=1.0, top_k=None, top_p=0.9, seed=0)

    Reference:
        Fan et al. 2018, "Hierarchical Neural Story Generation" (top-k); Holtzman et al. 2020, "The
        Curious Case of Neural Text Degeneration" (top-p).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: Any = 0

    def __post_init__(self):
        if not (_is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise InputError(
                f"`temperature` must be a number above 0. Received: {self.temperature!r}. Use "
                "ke.generation.Greedy() for the most probable token."
            )
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise InputError(
                f"`top_k` must be a number of tokens. Received: {self.top_k!r}. Give for example "
                "50, or None for all."
            )
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(
                f"`top_p` must be above 0 and at most 1. Received: {self.top_p!r}. Give for "
                "example 0.9."
            )

    def choose(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return int32 `[rows]`, a token drawn for each row; `index` makes each step differ."""
        logits = self.filtered(logits)
        uniform = tf.random.stateless_uniform(
            tf.shape(logits), tf.stack([tf.cast(self.seed, tf.int32), index]), alg="philox"
        )
        # The largest of logits with Gumbel noise is distributed as their softmax. 0 < uniform < 1.
        uniform = tf.clip_by_value(uniform, 1e-30, 1 - 2**-24)
        return tf.argmax(logits - tf.math.log(-tf.math.log(uniform)), -1, output_type=tf.int32)

    def filtered(self, logits: Tensor) -> Tensor:
        """Return the logits divided by the temperature; those of tokens left out are -1e30."""
        logits = logits / self.temperature
        if self.top_k is None and self.top_p == 1:
            return logits
        count = logits.shape[-1] if self.top_k is None else min(self.top_k, logits.shape[-1])
        largest = tf.math.top_k(logits, count).values
        if self.top_p < 1:
            probabilities = tf.nn.softmax(largest)
            before = tf.cumsum(probabilities, axis=-1, exclusive=True)
            # The first is always kept: nothing is before it.
            kept = tf.reduce_sum(tf.cast(before < self.top_p, tf.int32), axis=-1)
            least = tf.gather(largest, kept - 1, axis=-1, batch_dims=1)[:, None]
        else:
            least = largest[:, -1:]
        return tf.where(logits < least, NEVER, logits)


@dataclasses.dataclass(frozen=True)
class Beam:
    """Search the most probable sequence with a beam.

    At each step the `width` most probable unfinished sequences are kept. A sequence is finished by
    the token that ends it; the answer is the finished one with the largest log-probability divided
    by length ** `length_penalty`, or an unfinished one if `max_tokens` leaves no other.

    Args:
        width: Number of sequences that are kept for each example. Default: 4.
        length_penalty: Number; 0 compares probabilities, which favours short sequences, and 1 means
            per token. Default: 1.0.

    Raises:
        InputError: An argument is out of range.

    Examples:
        >>> ke.generation.Beam(width=5)
        Beam(width=5, length_penalty=1.0)

    Reference:
        Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks"; Wu et al. 2016,
        "Google's Neural Machine Translation System", for the length penalty.
    """

    width: int = 4
    length_penalty: float = 1.0

    def __post_init__(self):
        if type(self.width) is not int or self.width < 1:
            raise InputError(
                f"`width` must be a number of sequences. Received: {self.width!r}. Give for "
                "example 4."
            )
        if not (_is_number(self.length_penalty) and math.isfinite(self.length_penalty)):
            raise InputError(
                f"`length_penalty` must be a number. Received: {self.length_penalty!r}. Give 1.0, "
                "which compares log-probabilities per token."
            )


Strategy = Greedy | Sample | Beam


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
