"""Elastic weight consolidation: stay near the weights that an earlier task needs."""

import itertools
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.flavor._forward import SUM
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._batch_loss import batch_loss
from keras_efficient.training._loss_terms import LossTerm
from keras_efficient.training._microbatch_loop import batch_size

_NAME = "ewc"


class Elastic(LossTerm):
    """The penalty on the distance from earlier weights.

    Args:
        strength: factor of the penalty.
        variables: list of the `tf.Variable`s.
        anchors: list of tensors, their earlier values.
        fisher: list of float32 tensors, the importance of each weight.
    """

    def __init__(self, strength: float, variables: list, anchors: list, fisher: list):
        self.strength = strength
        self.parts = list(zip(variables, anchors, fisher, strict=True))

    @contextmanager
    def watching(self, flavor, model, part):
        def penalty(y_pred, weights):
            found: Any = self.penalty()
            # A loss that is a sum over the examples has the term as often as there are examples.
            if weights and weights[0].divisor is SUM:
                found *= tf.cast(batch_size(part), found.dtype)
            return found

        yield penalty

    def penalty(self) -> tf.Tensor:
        """Return the penalty, a float32 scalar."""
        terms = [
            tf.reduce_sum(fisher * tf.square(tf.cast(variable, tf.float32) - anchor))
            for variable, anchor, fisher in self.parts
        ]
        return self.strength / 2 * tf.add_n(terms)


def ewc(
    model: Model, data: Iterable[Any] | None, *, strength: float = 1000.0, examples: int = 500
) -> Model:
    """Keep what a model has learned, while it is trained on another task.

    Elastic weight consolidation adds a penalty to the loss of the new task, which holds each weight
    to its present value the more firmly, the more the loss of the earlier task depends on it:

        L(θ) + λ/2 · Σᵢ Fᵢ (θᵢ − θᵢ*)²        Fᵢ = mean over examples of (∂ log p(y|x) / ∂θᵢ)²

    The Fisher information F is computed at once, by the compiled loss in inference mode, from one
    example after the other. Call this when training on the earlier task is over, and before `fit`
    on the new one. It works with `ke.accumulate`, replicas and mixed precision, in both libraries,
    and needs twice the memory of the trainable weights, in float32.

    Args:
        model: a compiled Keras 3 or tf_keras model whose loss is the mean of −log p(y|x), such as
            a cross-entropy.
        data: labelled batches of the earlier task; or None to remove the penalty.
        strength: float > 0, λ. Default: 1000.0.
        examples: int > 0, the largest number of examples for F. Default: 500.

    Returns:
        The model.

    Raises:
        ValueError: `strength` or `examples` is not positive, the model has no compiled loss or
            nothing to train, the data are no labelled batches, or the loss of an example is not
            finite.
        TypeError: `model` is not a Keras model.

    Examples:
        >>> model = ke.ewc(model, dataset, strength=100.0)
        >>> history = model.fit(dataset, verbose=0)

    Reference:
        Kirkpatrick et al. 2017, "Overcoming Catastrophic Forgetting in Neural Networks".
    """
    flavor = flavors.of(model)
    if data is None:
        train_step_hook.set_loss_term(model, _NAME, None)
        return model
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not 0 < strength < float("inf"):
        raise ValueError(f"`strength` must be a finite number > 0. Received: {strength!r}.")
    if type(examples) is not int or examples < 1:
        raise ValueError(f"`examples` must be an int > 0. Received: {examples!r}.")
    if not flavor._losses(model):
        raise ValueError(
            "Elastic weight consolidation needs the loss of the earlier task. Received: "
            f"{model.name!r} without a compiled loss. Call `compile(optimizer, loss)` first."
        )
    variables = [flavor.value(variable) for variable in model.trainable_variables]
    if not variables:
        raise ValueError(
            "There must be weights to train. Received: "
            f"{model.name!r}, all of whose weights are frozen. Set `trainable` of some layers."
        )
    fisher = fisher_information(model, data, variables, examples)
    # Not `tf.cast` alone, which returns a variable of that dtype as it is.
    anchors = [tf.identity(tf.cast(variable, tf.float32)) for variable in variables]
    train_step_hook.set_loss_term(
        model, _NAME, Elastic(float(strength), variables, anchors, fisher)
    )
    return model


def fisher_information(
    model: Model, data: Iterable[Any], variables: list, examples: int
) -> list[tf.Tensor]:
    """Return the diagonal of the empirical Fisher information, a float32 tensor per variable.

    Args:
        model: the compiled model.
        data: labelled batches.
        variables: list of `tf.Variable`s.
        examples: largest number of examples.

    Raises:
        ValueError: there are no labelled examples, or a loss is not finite.
    """
    # Outside of the replicas a model reads the first copy of each variable.
    local = model.distribute_strategy.experimental_local_results
    variables = [local(variable)[0] for variable in variables]
    totals = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]

    @tf.function(reduce_retracing=True)
    def add(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = batch_loss(model, batch)
        for total, gradient in zip(totals, tape.gradient(loss, variables), strict=True):
            if gradient is not None:
                dense = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
                total.assign_add(tf.square(dense))
        return loss

    count = 0
    for example in itertools.islice(_single(data), examples):
        if not bool(tf.math.is_finite(add(example))):
            raise ValueError(
                "The loss of each example must be finite. Received: "
                f"{float(add(example))} for example {count}. Train the model first."
            )
        count += 1
    if not count:
        raise ValueError("`data` must have labelled examples. Received: none.")
    return [tf.convert_to_tensor(total) / count for total in totals]


def _single(data):
    """Yield the examples of labelled batches, each as a batch of one."""
    for batch in data:
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise ValueError(
                "`data` must be labelled batches, (features, labels). Received: "
                f"{type(batch).__name__}. Pass the training data of the earlier task."
            )
        pair = tf.nest.map_structure(tf.convert_to_tensor, (batch[0], batch[1]))
        for row in range(int(batch_size(pair))):
            yield (*tf.nest.map_structure(lambda t, i=row: t[i : i + 1], pair), None)
