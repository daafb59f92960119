"""The one place where a model's `train_step` is replaced, and put back."""

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Callback

_ATTRIBUTE = "_keras_efficient_step"


class TrainStepHook:
    """What stands in for `model.train_step`, as an attribute of that one model.

    The class keeps its own `train_step`, so the model is saved, cloned and pickled as before.
    While nothing asks for the training step of this package, the model's own runs.

    Attributes:
        plain: the step the model had.
        observers: functions of a batch, called once per step, in the graph.
        train_function_wrappers: callbacks with a method `wrap_train_function(train_function)` that
            returns the train function `fit` calls instead.
        split: how batches are split into microbatches (`split.Split`), or None.
        window: how many batches make an update (`window.Window`), or None: each makes one.
        second_pass: what is done with a batch's gradient before a second pass over the batch
            (`second_pass.SecondPass`), or None.
        penalty: a term added to the loss of every microbatch (`rdrop.RDrop`), or None.
        stop_signal: what processes tell each other with an update (`signal.Signal`), or None.
        gradient_observers: objects called with an update's `Gradients`, in the graph, before it
            is applied.
        upkeep: what looks after transforms of weights (`upkeep.Upkeep`), or None.
        after_update: objects called in the graph after an update that was applied.
        requesters: whoever else wants this package's training step.

    Watchers and what comes after an update have a method `build(model)`, called outside of the
    graph, in the strategy's scope, to create variables.
    """

    def __init__(self, model):
        self.model, self.flavor = model, flavors.of(model)
        self.observers, self.train_function_wrappers = [], []
        self.gradient_observers, self.after_update, self.requesters = [], [], []
        self.split = self.window = self.second_pass = self.penalty = self.stop_signal = None
        self.transform_updater = None
        self.plain, self.plain_make = model.train_step, model.make_train_function
        self.plain_make_test = model.make_test_function
        self._training_step, self._joined = None, []

    def join(self, callback, *groups):
        """Let a callback take part in the coming `fit`.

        Args:
            groups: the lists above that it goes into; none for the owner of a window.
        """
        for group in groups:
            if callback not in group:
                group.append(callback)
        self._joined.append(callback)

    def takes_part(self, callback):
        """Whether a callback has joined the coming `fit`."""
        return any(callback is joined for joined in self._joined)

    def leave(self, callback):
        """Let a callback take part no longer."""
        for group in self._groups:
            if callback in group:
                group.remove(callback)

    def _drop_leftovers(self):
        """Forget the callbacks of an earlier `fit` that was interrupted before it could end."""
        for group in self._groups:
            # (An observer need not be a callback: it is then detached by who attached it.)
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
    def training_step(self):
        """The training step of this package, for this model."""
        if self._training_step is None:
            from keras_efficient.training._training_step import TrainingStep

            self._training_step = TrainingStep(self)
        return self._training_step

    @property
    def parts(self):
        """What asks for the training step of this package."""
        parts = (self.split, self.window, self.second_pass, self.penalty, self.transform_updater)
        others = (*self.gradient_observers, *self.after_update, *self.requesters)
        return [part for part in (*parts, *others) if part is not None]

    def __call__(self, data):
        # tf_keras lets AutoGraph convert its step, Keras 3 does not. Our own code needs no
        # conversion, but the user's layers must meet the context they would have met.
        return _step(self, data, tf.__internal__.autograph.control_status_ctx())

    def make_train_function(self, force=False):
        """Stands in for `model.make_train_function`."""
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
        """Trace the step anew; also between two steps of a `fit`, for what trains has changed."""
        model = self.model
        if not self.parts:
            self.plain_make(force=True)
            function = model.train_function
        else:
            function = self.training_step.make_train_function()
        for callback in self.train_function_wrappers:
            function = callback.wrap_train_function(function)
        object.__setattr__(model, "train_function", function)

    def make_test_function(self, force=False):
        """Stands in for `model.make_test_function`.

        (XLA cannot compile what replicas do together.)
        """
        model = self.model
        if model.distribute_strategy.num_replicas_in_sync == 1:
            return self.plain_make_test(force=force)
        if model.test_function is None or force:
            with self.flavor.without_jit(model):
                self.plain_make_test(force=True)
            function = model.test_function

            def test_function(iterator):
                with self.flavor.without_jit(model):
                    return function(iterator)

            object.__setattr__(model, "test_function", test_function)
        return model.test_function


def _stale(iterator):
    """The train function of a model whose step has changed, until `fit` makes a new one."""
    raise RuntimeError(
        "The training step cannot change while `fit` runs. Received: a call of ke.accumulate, "
        "ke.sam or the like from within it (a callback?). Call it before `fit`, or between two. "
        "What may change in `fit` is set by BatchSizeSchedule, AdaptOnPlateau and "
        "microbatch_size='auto'."
    )


@tf.autograph.experimental.do_not_convert
def _step(hook, data, context):
    for observe in hook.observers:
        observe(data)
    if hook.parts:
        return hook.training_step(data, context)
    return tf.__internal__.autograph.tf_convert(hook.plain, context)(data)


def attach(model) -> TrainStepHook:
    """The model's hook, put in place if there is none yet. Its next `fit` traces anew."""
    hook = vars(model).get(_ATTRIBUTE)
    if hook is None:
        hook = TrainStepHook(model)
        # Past Keras' own __setattr__, which would look for state to track and save.
        vars(model).update(_attributes(hook))
        object.__setattr__(model, "test_function", None)
    object.__setattr__(model, "train_function", _stale)
    return hook


def of(model) -> TrainStepHook | None:
    """The model's hook, if it has one."""
    return vars(model).get(_ATTRIBUTE)


def detach_if_idle(model):
    """Give the model its own step back if nothing uses the hook any more."""
    hook = of(model)
    if hook is None:
        return
    object.__setattr__(model, "train_function", _stale)
    if not hook.parts and not hook.observers and not hook.train_function_wrappers:
        model.train_function = model.test_function = None
        for name in _attributes(hook):
            vars(model).pop(name, None)
        if hook.plain != type(model).train_step.__get__(model):
            object.__setattr__(model, "train_step", hook.plain)


def _attributes(hook):
    return {
        _ATTRIBUTE: hook,
        "train_step": hook,
        "make_train_function": hook.make_train_function,
        "make_test_function": hook.make_test_function,
        **hook.flavor.fit_overrides(hook.model),
    }
