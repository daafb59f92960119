"""Forward and backward passes of a batch for a contrastive loss, by gradient caching."""

from typing import Any

import tensorflow as tf
from tensorflow.python.framework import func_graph

from keras_efficient.training import _replicas as replicas
from keras_efficient.training._loss_terms import predictions
from keras_efficient.training._microbatch_loop import batch_size
from keras_efficient.training._microbatch_step import CompiledLossStep
from keras_efficient.training._stateful_draws import refused_draws

_RULE = "A model with a contrastive loss"


class ContrastiveStep(CompiledLossStep):
    """Step of a model whose loss compares all embeddings of a batch, on all replicas.

    The embeddings of all microbatches are computed, without gradients; then the loss, and its
    gradient with respect to them; then each microbatch runs again, and its part of that gradient
    goes on to the weights. Before, the state that draws dropout masks is set back, and so are
    moving statistics, so that the second run is the same as the first. A batch that is not split
    runs once.
    """

    def __init__(self, step, data, context, quiet=False):
        super().__init__(step, data, context, quiet)
        self.objective = step.hook.objective
        step.weighting, step.added, self.adds_apart = "given", None, False
        self.features, self.labels, weights = _unpacked(self.flavor, data)
        if weights is None:
            weights = tf.ones([self.examples], tf.float32)
        if weights.shape.rank != 1:
            raise ValueError(
                "A contrastive loss takes one weight per example, [examples]. Received: "
                f"sample_weight of shape {tuple(weights.shape)}. Give the weights of the anchors."
            )
        self.weights = tf.cast(weights, step.dtype)

    def zeros(self) -> dict:
        names = ("weight", "loss", "examples", "microbatches")
        return {name: tf.zeros([], self.step.dtype) for name in names}

    def accumulate(self) -> dict:
        """Add the gradients of the batch to the accumulator; return the totals of this replica."""
        step, data = self.step, (self.features, self.weights)
        # No tape reaches from one function that XLA compiles into another.
        compiled = step.static and step.distributed and not replicas.on_tpu()
        if step.split.microbatches == 1 and not compiled:
            with tf.control_dependencies([step.accumulator.open()]):
                return self.backward(data, self.gradient)
        shape = (self.examples, *self.shape())
        state = [replicas.local(variable) for variable in self.repeated_state()]
        before = [variable.read_value() for variable in state]

        def embed(part):
            features, rows = part
            found, _ = self.embed(features)
            return tf.scatter_nd(rows[:, None], found, shape)

        rows = tf.range(self.examples)
        zeros = tf.zeros(shape, step.dtype)
        embeddings = step.sum_over_microbatches(embed, (self.features, rows), zeros)
        upstream, totals = self.gradient(embeddings)
        with tf.control_dependencies([upstream]):
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)

        def again(part):
            *part, gradient = part
            return self.backward(part, lambda embeddings: (gradient, self.zeros()))

        data = (*data, upstream)
        sums = step.sum_over_microbatches(again, data, self.zeros(), step.accumulator.open)
        return {name: total + sums[name] for name, total in totals.items()}

    def shape(self) -> tuple[int, int]:
        """Return the number of texts per example, and the width of an embedding."""
        spec = tf.nest.map_structure(
            lambda x: x if x is None else tf.TensorSpec([None, *x.shape[1:]], x.dtype),
            self.features,
        )

        def embeddings(features):
            return self.embed(features)[0]

        graph = func_graph.func_graph_from_py_func("embeddings", embeddings, (spec,), {})
        outputs: Any = graph.structured_outputs
        return tuple(outputs.shape[1:])

    def repeated_state(self) -> list:
        """Return the variables that a forward pass changes: of random draws, and statistics."""
        model, flavor = self.model, self.flavor
        trained = {id(flavor.value(v)) for v in self.step.trained}
        found = {id(v): v for v in (*flavor.state(model), *self.step.random_state)}
        return [variable for key, variable in found.items() if key not in trained]

    def embed(self, features) -> tuple[Any, Any]:
        """Return embeddings `[examples, texts, width]`, and what layers add to the loss or None."""
        rows, texts = self.objective.rows(features)
        # In tf_keras the states of the generators, which this op changes, are among the model's.
        allowed = ("RngReadAndSkip",) if self.flavor.uses_autograph else ()
        with refused_draws(_RULE, "leave it out", allowed), self.context:
            forward = self.flavor.forward(self.model, (rows,), labelled=False)
        outputs = predictions(forward.y_pred)
        if len(outputs) != 1 or outputs[0].shape.rank != 2 or outputs[0].shape[-1] is None:
            shapes = [tuple(output.shape) for output in outputs]
            raise ValueError(
                "A contrastive loss compares one embedding per text, [texts, width]. Received: a "
                f"{type(self.model).__name__} with outputs of shape {shapes}. Pool the hidden "
                "states of tokens, or load the model with task='sentence_embedding'."
            )
        added = [
            tf.cast(x, self.step.dtype) for x in (forward.extra, forward.added) if x is not None
        ]
        width = outputs[0].shape[-1]
        embeddings = tf.cast(tf.reshape(outputs[0], [-1, texts, width]), self.step.dtype)
        return embeddings, tf.add_n(added) if added else None

    def gradient(self, embeddings) -> tuple[Any, dict]:
        """Return the gradient of the loss with respect to this replica's embeddings, and totals.

        The loss is the weighted sum over the examples of all replicas, in units of this one's.
        """
        labels = self.labels if self.objective.method == "supervised" else None
        values = [embeddings, self.weights] + ([] if labels is None else [labels])
        (everything, weights, *others), first = replicas.gathered(values)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(everything)
            losses = self.objective.losses(everything, others[0] if others else None)
            weighted = losses * tf.cast(weights, losses.dtype)
            total = tf.reduce_sum(weighted)
        here = slice(first, first + self.examples)
        gradient: Any = tape.gradient(total, everything)
        totals = {**self.zeros(), "loss": tf.reduce_sum(weighted[here]) / self.unit}
        totals["weight"] = tf.reduce_sum(self.weights) / self.unit
        return gradient[here] / self.unit, totals

    def backward(self, part, gradient_of) -> dict:
        """Add the gradients of a part of the batch to the accumulator; return its totals.

        Args:
            part: features and weights.
            gradient_of: function of embeddings that returns their gradient and totals.
        """
        features, weights = part
        with tf.GradientTape() as tape:
            embeddings, added = self.embed(features)
        upstream, totals = gradient_of(embeddings)
        targets, gradients = [embeddings], [upstream]
        if added is not None:
            share = tf.reduce_sum(weights) / self.unit
            targets, gradients = [*targets, added], [*gradients, share]
            totals["loss"] += added * share
        scaled = [self.flavor.scale_loss(self.model, gradient) for gradient in gradients]
        variables = list(map(self.flavor.value, self.step.trained))
        found = tape.gradient(targets, variables, output_gradients=scaled)
        pairs = zip(self.step.reached, found, strict=True)
        self.step.reached = [reached or gradient is not None for reached, gradient in pairs]
        self.step.accumulator.add(found)
        examples = tf.cast(batch_size(features), self.step.dtype)
        return {**totals, "examples": examples, "microbatches": tf.ones([], self.step.dtype)}


def check_settings(hook: Any) -> None:
    """Require that nothing else changes the loss of a model with a contrastive one.

    Args:
        hook: the model's `TrainStepHook`.

    Raises:
        ValueError: something does.
    """
    split, observers = hook.training_step.split, hook.gradient_observers
    others = {
        "a loss in `compile`": hook.flavor.has_loss(hook.model)
        and not hook.flavor.own_loss(hook.model),
        "another term of the loss (ke.distill, R-Drop)": bool(hook.loss_terms),
        "ke.accumulate(weight=…)": split.weight is not None,
        "ke.accumulate(added_losses='sum')": split.added_losses == "sum",
        "an update of several batches": hook.window is not None,
        "the norms of microbatches' gradients": any(
            getattr(observer, "square_norms", False) for observer in observers
        ),
    }
    found = [name for name, present in others.items() if present]
    if found:
        raise ValueError(
            "A contrastive loss compares the examples of one batch, and is the only loss. "
            f"Received: {found[0]}. Leave it out: weigh examples by `sample_weight`, compile "
            "without a loss, and make the dataset's batches as large as an update."
        )


def prepare_contrastive(model: Any, flavor: Any) -> list:
    """Create what a contrastive step changes besides weights, outside of the graph.

    Returns:
        The variables that decide random draws and are no part of the model's state.

    Raises:
        ValueError: the model is not built.
    """
    if not all(layer.built for layer in model._flatten_layers()):
        raise ValueError(
            "A model must be built before it is trained with a contrastive loss. Received: "
            f"{type(model).__name__} {model.name!r}, not built. Call it on a batch first."
        )
    flavor.build_loss_tracker(model)
    return flavor.random_state(model)


def _unpacked(flavor, data):
    return flavor.keras.utils.unpack_x_y_sample_weight(data)
