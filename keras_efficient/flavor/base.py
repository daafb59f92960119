"""What the rest of the package needs to know of a Keras library, and nothing more."""

from abc import ABC, abstractmethod
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

#: The library divided by (a multiple of) the number of examples.
EXAMPLES = "examples"
#: The library did not divide (`reduction="sum"`).
SUM = "sum"


@dataclass(frozen=True)
class Forward:
    """One forward pass of a model on a (micro)batch, as far as the training step needs it.

    Attributes:
        loss: scalar tensor, the compiled loss as the library reduces it, without `extra`.
        extra: scalar tensor or None: regularisers and `add_loss` terms, which no batch size
            divides.
        weight: what the library divided the sum of weighted losses by to get `loss`: `EXAMPLES`,
            `SUM`, or a scalar tensor (the number of unmasked tokens, the sum of sample weights).
    """

    loss: Any
    extra: Any
    weight: Any


def common_weight(weights):
    """The one denominator of a model's losses; a ValueError if they have several."""
    if len(weights) == 1:
        return weights[0]
    kinds = {
        weight if isinstance(weight, str) else "a mask or sample weights" for weight in weights
    }
    if len(kinds) == 1 and (kind := kinds.pop()) in (EXAMPLES, SUM):
        return kind
    raise ValueError(
        "Accumulation over a model with several losses needs one way of averaging for all of "
        f"them. Received losses averaged by: {sorted(kinds) or 'masks of their own'}. Give the "
        "losses the same `reduction` and no masks, or train without `ke.accumulate`."
    )


def flat_logs(logs):
    """`logs` as both `fit`s show them: {"compile_metrics": {"accuracy": a}} is {"accuracy": a}."""
    flat = {}
    for name, value in logs.items():
        flat.update(flat_logs(value) if isinstance(value, dict) else {name: value})
    return flat


class Flavor(ABC):
    """A Keras library seen through the few differences that matter here."""

    #: "keras" or "tf_keras", the value users pass as `library=`.
    name: str
    #: The library itself; its public namespace is the same in both.
    keras: ModuleType

    # --- variables -----------------------------------------------------------------------------

    @abstractmethod
    def value(self, variable):
        """The `tf.Variable` that holds `variable`."""

    @abstractmethod
    def path(self, variable) -> str:
        """`variable`'s path in its model, such as "encoder/layer_0/dense/kernel"."""

    def weights(self, model) -> list:
        """Each variable of `model` once, as `tf.Variable`s, in the library's order."""
        unique = {id(value): value for value in map(self.value, model.weights)}
        return list(unique.values())

    def state(self, model) -> list:
        """`weights`, and what else a layer changes in training (Keras 3's random seeds)."""
        return self.weights(model)

    # --- layers --------------------------------------------------------------------------------

    @abstractmethod
    def set_policy(self, layer, policy: str):
        """Change the dtype policy of a built layer; its variables stay as they are."""

    # --- calling a model -----------------------------------------------------------------------

    @abstractmethod
    def call(self, model, inputs, training: bool):
        """`model(inputs)`, with `training` passed on if the model takes it."""

    @abstractmethod
    def forward(self, model, data) -> Forward:
        """Run `model` on `data` in training mode and reduce its compiled loss; update its metrics.

        Neither the loss tracker nor the per-output loss trackers move: `track_loss` does that,
        once per update.
        """

    @abstractmethod
    def has_own_train_step(self, model) -> bool:
        """Whether the model's class overrides `train_step` (Hugging Face does)."""

    @abstractmethod
    def is_ready(self, model) -> bool:
        """Whether the model, its compiled loss and its metrics have all their variables."""

    def prepare(self, model, data_spec):
        """Create what `is_ready` misses by tracing one evaluation step. Nothing is executed."""
        import tensorflow as tf

        with tf.init_scope():
            step = tf.autograph.experimental.do_not_convert(lambda data: model.test_step(data))
            tf.function(step).get_concrete_function(data_spec)

    # --- metrics -------------------------------------------------------------------------------

    def still_loss(self, model):
        """A context in which the metric called "loss" does not move."""
        return nullcontext()

    @abstractmethod
    def track_loss(self, model, loss, examples):
        """Record `loss`, the mean over `examples` examples, in the metric called "loss"."""

    def metrics_result(self, model) -> dict:
        """`{name: value}` of the model's metrics, the logs of a step."""
        return dict(model.get_metrics_result())

    # --- optimizer -----------------------------------------------------------------------------

    def build_optimizer(self, model):
        """Create the optimizer's variables, outside of any graph.

        Both libraries do it while they trace the first update, and the graph then keeps a zero
        tensor for each of them.
        """
        import tensorflow as tf

        optimizer = model.optimizer
        if not getattr(optimizer, "built", False) and hasattr(optimizer, "build"):
            with tf.init_scope():
                optimizer.build(model.trainable_variables)

    @abstractmethod
    def gradients(self, model, tape, loss, variables) -> list:
        """The gradients of `loss`, in the form (loss-scaled or not) that `apply` expects."""

    def apply(self, model, gradients, variables):
        """One optimizer update."""
        model.optimizer.apply_gradients(zip(gradients, variables, strict=True))

    # --- a model's own train_step --------------------------------------------------------------

    def own_weight(self, model, data):
        """What the loss of the model's own `train_step` divides by, as in `Forward.weight`."""
        return EXAMPLES

    def own_logs(self, model, train_step, data) -> list[str]:
        """The names in the logs of the model's own `train_step`."""
        import tensorflow as tf

        if type(model).train_step.__module__.startswith("transformers."):
            return list(self.metrics_result(model))
        with tf.init_scope(), self.recording(model, 1.0):
            spec = tf.nest.map_structure(tf.type_spec_from_value, data)
            step = tf.autograph.experimental.do_not_convert(lambda data: train_step(data))
            logs = tf.function(step).get_concrete_function(spec).structured_outputs
        return list(flat_logs(logs))

    @contextmanager
    def recording(self, model, weight):
        """A context in which the model's own `train_step` hands over its gradients.

        Yields a `Recording`, whose gradients come multiplied by the scalar `weight`. Inside, the
        optimizer keeps what it receives instead of updating anything. (MirroredStrategy runs its
        replicas' threads one at a time between merge calls, and a recorded step makes none.)
        """
        optimizer, recording = model.optimizer, Recording(self, model, weight)
        names = [n for n in ("minimize", "apply", "apply_gradients") if hasattr(optimizer, n)]
        for name in names:
            # Past Keras' own __setattr__, which would track the attribute.
            object.__setattr__(optimizer, name, getattr(recording, name))
        try:
            yield recording
        finally:
            for name in names:
                object.__delattr__(optimizer, name)


class Recording:
    """The gradients and variables that a model's own `train_step` wanted applied."""

    def __init__(self, flavor, model, weight):
        self.flavor, self.model, self.weight = flavor, model, weight
        self.gradients = self.variables = self.loss = None

    def minimize(self, loss, var_list, tape=None, **kwargs):
        import tensorflow as tf

        if tape is None:
            tape = tf.GradientTape()
        with tape:
            loss = loss() if callable(loss) else loss
            # Cheaper than multiplying every gradient.
            loss *= tf.cast(self.weight, loss.dtype)
        self.loss = loss
        variables = list(var_list() if callable(var_list) else var_list)
        self._take(self.flavor.gradients(self.model, tape, loss, variables), variables)

    def apply_gradients(self, grads_and_vars, *args, **kwargs):
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        if trainable_variables is None:
            trainable_variables = self.model.trainable_variables
        self._take(
            [g if g is None else g * tf.cast(self.weight, g.dtype) for g in grads],
            trainable_variables,
        )

    def _take(self, gradients, variables):
        if self.gradients is not None:
            raise NotImplementedError(
                "Accumulation needs a `train_step` that applies its gradients once per call. "
                "This model's `train_step` applied them twice. Give each optimizer its own step."
            )
        self.gradients, self.variables = list(gradients), list(variables)
