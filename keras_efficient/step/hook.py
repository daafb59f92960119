"""The one place where a model's `train_step` is replaced, and put back."""

import tensorflow as tf

_ATTRIBUTE = "_keras_efficient_step"


class Hook:
    """What stands in for `model.train_step`, as an attribute of that one model.

    The class keeps its own `train_step`, so the model is saved, cloned and pickled as before.

    Attributes:
        plain: the step the model had.
        run: `(data, autograph context) -> logs`, or None for the plain step.
        observers: functions of a batch, called once per update, in the graph.
    """

    def __init__(self, model):
        self.plain = model.train_step
        self.run = None
        self.observers = []

    def __call__(self, data):
        # tf_keras lets AutoGraph convert its step, Keras 3 does not. Our own code needs no
        # conversion, but the user's layers must meet the context they would have met.
        return _step(self, data, tf.__internal__.autograph.control_status_ctx())


@tf.autograph.experimental.do_not_convert
def _step(hook, data, context):
    for observe in hook.observers:
        observe(data)
    if hook.run is not None:
        return hook.run(data, context)
    return tf.__internal__.autograph.tf_convert(hook.plain, context)(data)


def attach(model) -> Hook:
    """The model's hook, put in place if there is none yet. Its next `fit` traces anew."""
    hook = vars(model).get(_ATTRIBUTE)
    if hook is None:
        hook = Hook(model)
        # Past Keras' own __setattr__, which would look for state to track and save.
        object.__setattr__(model, _ATTRIBUTE, hook)
        object.__setattr__(model, "train_step", hook)
    model.train_function = None
    return hook


def detach_if_idle(model):
    """Give the model its own step back if nothing uses the hook any more."""
    hook = vars(model).get(_ATTRIBUTE)
    if hook is None:
        return
    model.train_function = None
    if hook.run is None and not hook.observers:
        object.__delattr__(model, _ATTRIBUTE)
        object.__delattr__(model, "train_step")
        if hook.plain != type(model).train_step.__get__(model):
            object.__setattr__(model, "train_step", hook.plain)
