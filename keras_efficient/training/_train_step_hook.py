"""Hook that replaces a model's `train_step` and restores it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Callback, Model
from keras_efficient.training import _replicas as replicas

if TYPE_CHECKING:
    from keras_efficient.training._accumulation_window import AccumulationWindow
    from keras_efficient.training._batch_split import BatchSplit
    from keras_efficient.training._contrastive import ContrastiveObjective
    from keras_efficient.training._loss_terms import LossTerm
    from keras_efficient.training._sam import SecondPass
    from keras_efficient.training._stop_signal import StopSignal
    from keras_efficient.training._training_step import TrainingStep
    from keras_efficient.training._transform_updates import TransformUpdater

_ATTRIBUTE = "_keras_efficient_step"


class TrainStepHook:
    """Replacement for `model.train_step`, set as an attribute of one model instance.

    The class keeps its own `train_step`, so the model is saved, cloned and pickled as before. As
    long as nothing needs the training step of this package, the model's own step runs.

    Attributes:
        original: the `train_step` that the model had.
        observers: functions of a batch, called once per step, in the graph.
        train_function_wrappers: callbacks with a method `wrap_train_function(train_function)` that
            returns the train function `fit` calls instead.
        split: how batches are split into microbatches, or None.
        window: the batches that make an update together, or None: each batch makes one.
        second_pass: the second pass over a batch, or None.
        objective: the loss of all embeddings of a batch, in place of the compiled loss, or None.
        loss_terms: the `LossTerm`s that are added to the loss of every microbatch, by name.
        stop_signal: the signal that processes exchange with an update, or None.
        gradient_observers: objects called with an update's `Gradients`, in the graph, before it
            is applied.
        transform_updater: updates weight transforms, or None.
        after_update: objects called in the graph after an update that was applied.
        requesters: further objects that need the training step of this package.

    Gradient observers and the objects in `after_update` have a method `build(model)`, called
    outside of the graph, in the scope of the strategy, to create variables.
    """

    def __init__(self, model: Model):
        self.model, self.flavor = model, flavors.of(model)
        self.observers: list = []
        self.train_function_wrappers: list = []
        self.gradient_observers: list = []
        self.after_update: list = []
        self.requesters: list = []
        self.split: BatchSplit | None = None
        self.window: AccumulationWindow | None = None
        self.second_pass: SecondPass | None = None
        self.objective: ContrastiveObjective | None = None
        self.loss_terms: dict[str, LossTerm] = {}
        self.stop_signal: StopSignal | None = None
        self.transform_updater: TransformUpdater | None = None
        self.original: Callable = model.train_step
        self.original_make_train_function: Callable = model.make_train_function
        self.original_make_test_function: Callable = model.make_test_function
        self._training_step: TrainingStep | None = None
        self._joined: list = []

    def join(self, callback: object, *groups: list):
        """Register a callback for the coming `fit`.

        Args:
            callback: the callback.
            groups: the lists above to add it to; none for the owner of a window.
        """
        for group in groups:
            if callback not in group:
                group.append(callback)
        self._joined.append(callback)

    def takes_part(self, callback: object) -> bool:
        """Return whether a callback has joined the coming `fit`."""
        return any(callback is joined for joined in self._joined)

    def leave(self, callback: object):
        """Remove a callback from all lists."""
        for group in self._groups:
            if callback in group:
                group.remove(callback)

    def _drop_leftovers(self):
        """Remove the callbacks of an earlier `fit` that was interrupted before its end."""
        for group in self._groups:
            # Observers that are not callbacks are removed by whoever attached them.
            leftovers = [c for c in group if c not in self._joined]
            for callback in leftovers:
                if group is not self.observers or isinstance(callback, Callback):
                    group.remove(callback)
        if self.window is not None and self.window.owner not in self._joined:
            self.window = None
        self._joined = []

    @property
    def _groups(self):
        return (
            self.observers,
            self.train_function_wrappers,
            self.gradient_observers,
            self.after_update,
            self.requesters,
        )

    @property
    def training_step(self) -> "TrainingStep":
        """This package's training step for the model, created on first use."""
        if self._training_step is None:
            from keras_efficient.training._training_step import TrainingStep

            self._training_step = TrainingStep(self)
        return self._training_step

    @property
    def parts(self) -> list:
        """Everything that needs the training step of this package."""
        parts = (self.split, self.window, self.second_pass, self.transform_updater)
        others = (
            self.objective,
            *self.loss_terms.values(),
            *self.gradient_observers,
            *self.after_update,
            *self.requesters,
        )
        return [part for part in (*parts, *others) if part is not None]

    def __call__(self, data):
        # tf_keras converts its step by AutoGraph, Keras 3 does not. This package's code needs no
        # conversion, but the user's layers must run in the context that their library gives them.
        return _step(self, data, tf.__internal__.autograph.control_status_ctx())

    def make_train_function(self, force: bool = False):
        """Replacement for `model.make_train_function`."""
        model, before = self.model, [*self.parts, *self.observers, *self.train_function_wrappers]
        self._drop_leftovers()
        if self.transform_updater is not None and self.transform_updater.idle:
            self.transform_updater = None
        force = force or len([*self.parts, *self.observers, *self.train_function_wrappers]) < len(
            before
        )
        if model.train_function in (None, _stale) or force:
            self.retrace()
        return model.train_function

    def retrace(self):
        """Trace the step anew; in `fit`, after the set of trainable weights has changed."""
        model = self.model
        if not self.parts:
            self.original_make_train_function(force=True)
            function = model.train_function
        else:
            function = self.training_step.make_train_function()
        for callback in self.train_function_wrappers:
            function = callback.wrap_train_function(function)
        object.__setattr__(model, "train_function", function)

    def make_test_function(self, force: bool = False):
        """Replacement for `model.make_test_function`.

        Under a strategy it is compiled without XLA, which does not support cross-replica
        operations.
        """
        model = self.model
        if not replicas.trains_distributed(model):
            return self.original_make_test_function(force=force)
        if model.test_function is None or force:
            with self.flavor.jit(model, compiled=False):
                self.original_make_test_function(force=True)
            function: Any = model.test_function

            def test_function(iterator):
                with self.flavor.jit(model, compiled=False):
                    return function(iterator)

            object.__setattr__(model, "test_function", test_function)
        return model.test_function


def _stale(iterator):
    """Train function of a model whose step has changed, until `fit` makes a new one."""
    raise RuntimeError(
        "The training step cannot change while `fit` runs. Received: a call of ke.accumulate, "
        "ke.sam or a similar function during `fit`, perhaps from a callback. Call it before `fit` "
        "or between two calls of `fit`. BatchSizeSchedule, AdaptOnPlateau and "
        "microbatch_size='auto' change their settings during `fit`."
    )


@tf.autograph.experimental.do_not_convert
def _step(hook, data, context):
    for observe in hook.observers:
        observe(data)
    if hook.parts:
        return hook.training_step(data, context)
    return tf.__internal__.autograph.tf_convert(hook.original, context)(data)


def attach(model: Model) -> TrainStepHook:
    """Return the model's hook, attached if there is none yet; the next `fit` traces anew."""
    hook = vars(model).get(_ATTRIBUTE)
    if hook is None:
        hook = TrainStepHook(model)
        # Bypasses the library's __setattr__, which would look for state to track and save.
        vars(model).update(_attributes(hook))
        object.__setattr__(model, "test_function", None)
    object.__setattr__(model, "train_function", _stale)
    return hook


def of(model: Model) -> TrainStepHook | None:
    """Return the model's hook, or None."""
    return vars(model).get(_ATTRIBUTE)


def attached(model: Model) -> TrainStepHook:
    """Return the hook of a model that has one.

    Raises:
        KeyError: if the model has none.
    """
    return vars(model)[_ATTRIBUTE]


def detach_if_idle(model: Model):
    """Restore the model's own step if nothing uses the hook any more."""
    hook = of(model)
    if hook is None:
        return
    object.__setattr__(model, "train_function", _stale)
    if not hook.parts and not hook.observers and not hook.train_function_wrappers:
        model.train_function = model.test_function = None
        for name in _attributes(hook):
            vars(model).pop(name, None)
        if hook.original != type(model).train_step.__get__(model):
            object.__setattr__(model, "train_step", hook.original)


def set_loss_term(model: Model, name: str, term: "LossTerm | None"):
    """Add a term to the loss of the model's training step, or remove the one of that name."""
    hook = attach(model)
    hook.loss_terms.pop(name, None)
    if term is not None:
        hook.loss_terms[name] = term
    detach_if_idle(model)


def _attributes(hook: TrainStepHook) -> dict[str, Any]:
    return {
        _ATTRIBUTE: hook,
        "train_step": hook,
        "make_train_function": hook.make_train_function,
        "make_test_function": hook.make_test_function,
        **hook.flavor.fit_overrides(hook.model),
    }
