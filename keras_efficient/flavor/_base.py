"""What the rest of the package needs to know of a Keras library, and nothing more."""

import functools
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
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
        y_pred: the model's outputs.
    """

    loss: Any
    extra: Any
    weight: Any
    y_pred: Any = None


@dataclass(frozen=True)
class LossScale:
    """The dynamic loss scaling of a compiled optimizer, kept in the library's own variables.

    Attributes:
        inner: the optimizer that makes the updates.
        scale: `tf.Variable`, what the loss is multiplied by (a float where it does not change).
        good_steps: `tf.Variable`, finite steps since the scale last changed; None if it does not.
        growth_steps: int, after how many of them the scale doubles.
    """

    inner: Any
    scale: Any
    good_steps: Any = None
    growth_steps: int = 0

    def update(self, finite):
        """Halve the scale (not below 1) after a step that was not finite, else let it grow."""
        import tensorflow as tf

        if self.good_steps is None:
            return
        good = self.good_steps + 1
        grown = tf.logical_and(finite, good >= self.growth_steps)
        larger = tf.where(grown, self.scale * 2.0, self.scale)
        # Past float32's range it could never come back.
        larger = tf.where(tf.math.is_finite(larger), larger, self.scale)
        smaller = tf.maximum(self.scale / 2.0, 1.0)
        keep = tf.logical_and(finite, tf.logical_not(grown))
        self.scale.assign(tf.where(finite, larger, smaller))
        self.good_steps.assign(tf.where(keep, good, tf.zeros_like(good)))


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


@contextmanager
def replaced(owner, **attributes):
    """A context in which attributes of `owner` have other values.

    (Keras' own `__setattr__`, which would track the values as state, is passed by.)
    """
    missing = object()
    before = {name: vars(owner).get(name, missing) for name in attributes}
    vars(owner).update(attributes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                del vars(owner)[name]
            else:
                vars(owner)[name] = value


def flat_logs(logs):
    """`logs` as both `fit`s show them: {"compile_metrics": {"accuracy": a}} is {"accuracy": a}."""
    flat = {}
    for name, value in logs.items():
        flat.update(flat_logs(value) if isinstance(value, dict) else {name: value})
    return flat


def _save_once(plain, strategy_class, model, filepath, *args, **kwargs):
    """A library's `save_model` or `save_weights`: by all workers, and only the first one's stays.

    (All take part, since reading what is summed over replicas needs all.)
    """
    strategy = getattr(model, "distribute_strategy", None)
    if not isinstance(strategy, strategy_class):
        return plain(model, filepath, *args, **kwargs)
    failure = None
    with tempfile.TemporaryDirectory() as folder:
        if strategy.cluster.index > 0:
            filepath = str(Path(folder) / Path(filepath).name)
        try:
            plain(model, filepath, *args, **kwargs)
        except Exception as error:
            failure = error
    # Whoever reads the file next finds it whole; and a failure is that of all.
    whole = strategy.agree(failure is None, all)
    if failure is not None:
        raise failure
    if not whole:
        raise RuntimeError(
            "A model is saved by all workers. Received: another worker's failure, which its output "
            "shows. Mend that."
        )


#: What a model keeps of its traced functions.
_FUNCTIONS = ("train_function", "test_function", "predict_function")


class Store:
    """A layer that has no call, only variables with names: what transforms of weights keep.

    Each library's class of it is a layer. A file without them leaves them as they are.
    """

    def variable(self, name, shape, initial, *, trainable=False, dtype="float32", regularizer=None):
        """Make a variable; the strategy's scope is the caller's.

        Args:
            name: str, unique in this store; no "/".
            initial: array or number it starts with.
        """
        import numpy as np

        if name in self.named:
            raise ValueError(f"Variable {name!r} exists.")
        value = np.broadcast_to(np.asarray(initial), tuple(shape))
        made = self._make(name, tuple(shape), value, trainable, dtype, regularizer)
        self.named[name] = made
        return made

    def save_own_variables(self, store):
        for name, variable in self.named.items():
            store[name] = variable.numpy()
        for name, value in self.saved_too().items():
            store[name] = value

    def load_own_variables(self, store):
        names = set(store.keys())
        for name, variable in self.named.items():
            if name in names:
                variable.assign(store[name][()] if hasattr(store[name], "dims") else store[name])
        self.loaded({name: store[name] for name in names - set(self.named)})

    @staticmethod
    def saved_too() -> dict:
        """Arrays by name that are saved with the variables."""
        return {}

    @staticmethod
    def loaded(others: dict):
        """Take what was `saved_too`."""


@dataclass(frozen=True)
class Place:
    """Where in a layer a variable was.

    Attributes:
        name: str, the layer's attribute as it is kept.
        group: str, the layer's list that had it.
        index: int, where in it.
        make: function of an array that gives a new variable like it (which it does not keep); the
            strategy's scope is the caller's.
    """

    name: str
    group: str
    index: int
    make: Any


class Flavor(ABC):
    """A Keras library seen through the few differences that matter here."""

    #: "keras" or "tf_keras", the value users pass as `library=`.
    name: str
    #: The library itself; its public namespace is the same in both.
    keras: ModuleType
    #: Whether `optimizer.apply_gradients` expects gradients of the scaled loss.
    applies_scaled: bool
    #: Whether `fit` shows the sum of what replicas log, else the mean.
    sums_logs: bool
    #: The module whose `save_model` and `save_weights` the methods of a model call.
    saving: ModuleType

    def __init__(self):
        self._served = []

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

    def random_state(self, model) -> list:
        """The variables, not in `state`, that decide what a training step draws at random.

        To be called before the training step is traced: it may have to make them.
        """
        return []

    def forget_random_state(self, model):
        """Let layers draw again as before `random_state`."""
        return

    # --- layers --------------------------------------------------------------------------------

    @abstractmethod
    def set_policy(self, layer, policy: str):
        """Change the dtype policy of a built layer; its variables stay as they are."""

    # --- views of weights (`parametrize`) -------------------------------------------------------

    #: Class of a `Store`, a layer of this library.
    store: type

    @abstractmethod
    def attributes(self, layer) -> dict:
        """`{attribute: variable}` of the layer's own variables, by the name its `call` reads."""

    @abstractmethod
    def adopt(self, layer, name: str, child):
        """Make `child` a layer inside `layer`, which is built."""

    @abstractmethod
    def release(self, layer, name: str):
        """Undo `adopt`."""

    @abstractmethod
    def remove_variable(self, layer, variable):
        """Let a layer own a variable no longer."""

    @abstractmethod
    def take_variable(self, layer, variable) -> "Place":
        """Let a layer neither own nor read one of its variables any longer; returns its place."""

    @abstractmethod
    def put_variable(self, layer, place, variable):
        """Let a layer own and read a variable where another one was, see `take_variable`."""

    @abstractmethod
    def autocast(self, tensor):
        """`tensor` in the dtype that the layer being called computes in, as a variable's would."""

    @abstractmethod
    def set_trainable(self, layer, variable, trainable: bool):
        """Freeze one of a layer's own variables, or let it train; the layer is a viewed one."""

    @abstractmethod
    def is_trainable(self, layer, variable) -> bool:
        """Whether a training step moves the variable (if the model does not freeze the layer)."""

    @abstractmethod
    def saved_order(self, layer) -> list:
        """The layer's own variables in the order in which `save_own_variables` numbers them."""

    def viewed(self) -> dict:
        """What else a class of viewed layers needs: `{attribute: value}`."""
        return {}

    @contextmanager
    def aside(self, model):
        """A context in which traced functions of the model are out of the way, and made anew."""
        traced = {name: getattr(model, name, None) for name in _FUNCTIONS}
        try:
            for name in traced:
                object.__setattr__(model, name, None)
            yield
        finally:
            for name, function in traced.items():
                object.__setattr__(model, name, function)

    def renew(self, model):
        """Let a compiled model see its weights anew: functions are traced again.

        An optimizer that was built for other variables than those that train starts its state anew,
        but not its count of updates. Where some are only frozen, it keeps all.
        """
        for name in _FUNCTIONS:
            if getattr(model, name, None) is not None:
                object.__setattr__(model, name, None)
        optimizer = getattr(model, "optimizer", None)
        while optimizer is not None:
            self._renew_optimizer(optimizer, model)
            optimizer = getattr(optimizer, "inner_optimizer", None)

    @abstractmethod
    def _renew_optimizer(self, optimizer, model):
        """Unbuild an optimizer that was built for other variables than the model trains now."""

    # --- calling a model -----------------------------------------------------------------------

    @abstractmethod
    def call(self, model, inputs, training: bool):
        """`model(inputs)`, with `training` passed on if the model takes it."""

    @abstractmethod
    def forward(self, model, data) -> Forward:
        """Run `model` on `data` in training mode and reduce its compiled loss; update its metrics.

        The loss is that of this data alone, whatever the number of replicas. The loss tracker does
        not move: `track_loss` does that, once per update.
        """

    @abstractmethod
    def from_logits(self, model) -> bool:
        """Whether the compiled loss takes the model's outputs for logits."""

    @abstractmethod
    def has_own_train_step(self, model) -> bool:
        """Whether the model's class overrides `train_step` (Hugging Face does)."""

    @abstractmethod
    def is_ready(self, model) -> bool:
        """Whether the model, its compiled loss and its metrics have all their variables."""

    def prepare(self, model, data_spec):
        """Create what `is_ready` misses by tracing one evaluation step. Nothing is executed.

        Args:
            data_spec: nest of specs of a batch, per replica where several train.
        """
        import tensorflow as tf

        strategy = model.distribute_strategy
        step = tf.autograph.experimental.do_not_convert(lambda data: model.test_step(data))

        if strategy.num_replicas_in_sync == 1:
            run = step
        else:
            run = tf.autograph.experimental.do_not_convert(lambda d: strategy.run(step, (d,)))
        with tf.init_scope():
            tf.function(run).get_concrete_function(data_spec)

    # --- metrics -------------------------------------------------------------------------------

    @abstractmethod
    def loss_tracker(self, model):
        """The metric called "loss"."""

    @contextmanager
    def still_loss(self, model):
        """A context in which the metric called "loss" does not move; yields what it was given."""
        seen = []
        update = {"update_state": lambda value, sample_weight=None: seen.append(value)}
        with replaced(self.loss_tracker(model), **update):
            yield seen

    @contextmanager
    def still_metrics(self, model):
        """A context in which no metric of the model moves."""
        with ExitStack() as stack:
            for metric in self.all_metrics(model):
                stack.enter_context(replaced(metric, update_state=lambda *args, **kwargs: None))
            yield

    def all_metrics(self, model) -> list:
        """Every metric of the model, the "loss" and those inside others included."""
        return list(model.metrics)

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
    def loss_scale(self, model) -> LossScale | None:
        """The dynamic loss scaling of the compiled (and built) optimizer, if it has one."""

    def optimizer(self, model):
        """The optimizer that makes the updates, out of its loss-scaling wrapper."""
        return getattr(model.optimizer, "inner_optimizer", model.optimizer)

    def scale_loss(self, model, loss):
        """Multiply `loss` as the optimizer's dynamic loss scaling, or its fixed factor, wants."""
        import tensorflow as tf

        scaling = self.loss_scale(model)
        return loss if scaling is None else loss * tf.cast(scaling.scale, loss.dtype)

    @abstractmethod
    def apply(self, model, gradients, variables):
        """One update with gradients that are summed over replicas, divided and unscaled."""

    # --- replicas ------------------------------------------------------------------------------

    def adaptations(self, model) -> dict:
        """Attributes of the model that mend what its `fit` does before the training step."""
        return {}

    @abstractmethod
    def steps_per_execution(self, model) -> int:
        """How many steps `fit` wants of one call of the train function."""

    def count_step(self, model):
        """Do what the library's train function does after every step."""
        return

    @contextmanager
    def without_jit(self, model):
        """A context in which the library does not compile the whole step with XLA."""
        with replaced(model, _jit_compile=False):
            yield

    def serve_workers(self, strategy_class):
        """Let models made under strategies of this class be saved on several workers (trap 21).

        The library's functions are replaced, once, and do what they did for all other models.
        """
        if strategy_class in self._served:
            return
        self._served.append(strategy_class)
        for name in ("save_model", "save_weights"):
            plain = getattr(self.saving, name)
            once = functools.wraps(plain)(functools.partial(_save_once, plain, strategy_class))
            for module in (self.saving, self.keras.saving, self.keras.models):
                if hasattr(module, name):
                    setattr(module, name, once)

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
    def recording(self, model, weight, penalty=None):
        """A context in which the model's own `train_step` hands over its gradients.

        Yields a `Recording`, whose gradients come multiplied by the scalar `weight` and by the
        loss scale. Inside, the optimizer keeps what it receives instead of updating anything.
        (MirroredStrategy runs its replicas' threads one at a time between merge calls, and a
        recorded step makes none.)
        """
        optimizer, recording = model.optimizer, Recording(self, model, weight, penalty)
        names = [n for n in ("minimize", "apply", "apply_gradients") if hasattr(optimizer, n)]
        methods = {name: getattr(recording, name) for name in names}
        with replaced(optimizer, **methods), self.unscaled():
            yield recording

    @abstractmethod
    def unscaled(self):
        """A context in which the library does not divide losses by the number of replicas."""


class Recording:
    """The gradients and variables that a model's own `train_step` wanted applied."""

    def __init__(self, flavor, model, weight, penalty=None):
        self.flavor, self.model, self.weight, self.penalty = flavor, model, weight, penalty
        self.gradients = self.variables = self.loss = None

    def minimize(self, loss, var_list, tape=None, **kwargs):
        import tensorflow as tf

        if tape is None:
            tape = tf.GradientTape()
        with tape:
            loss = loss() if callable(loss) else loss
            if self.penalty is not None:
                loss += self.penalty()
            # Cheaper than multiplying every gradient.
            self.loss = loss = loss * tf.cast(self.weight, loss.dtype)
            loss = self.flavor.scale_loss(self.model, loss)
        variables = list(var_list() if callable(var_list) else var_list)
        self._take(tape.gradient(loss, list(map(self.flavor.value, variables))), variables)

    def apply_gradients(self, grads_and_vars, *args, **kwargs):
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        if self.penalty is not None:
            raise NotImplementedError(
                "R-Drop adds a term to the loss, so it needs a `train_step` that gives its loss to "
                "`optimizer.minimize(loss, variables, tape=tape)`. Received one that applies "
                "gradients. Use Keras' own `train_step`, or `minimize`."
            )
        if trainable_variables is None:
            trainable_variables = self.model.trainable_variables
        factor = self.weight
        if not self.flavor.applies_scaled:
            factor = self.flavor.scale_loss(self.model, tf.cast(factor, tf.float32))
        self._take(
            [g if g is None else tf.math.scalar_mul(factor, g) for g in grads],
            trainable_variables,
        )

    def _take(self, gradients, variables):
        if self.gradients is not None:
            raise NotImplementedError(
                "Accumulation needs a `train_step` that applies its gradients once per call. "
                "This model's `train_step` applied them twice. Give each optimizer its own step."
            )
        self.gradients, self.variables = list(gradients), list(variables)
