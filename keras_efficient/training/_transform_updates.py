"""What a training step does for the transforms of a model's weights."""

from contextlib import ExitStack, contextmanager

from keras_efficient.parametrize._attach import updaters
from keras_efficient.training import _train_step_hook as train_step_hook


class TransformUpdater:
    """Lets the updaters of a model's transforms do their part of every update.

    A updater has `build(model)`, called outside of the graph, and `after_update()`, called in it, in
    every replica, after an update that was applied. It may have a context manager `training()`, in
    which the training step is traced (to see what passes through layers), and `watch(gradients)`,
    called in the graph with an update's `Gradients` before it is applied.
    """

    def __init__(self, model):
        self.model, self.updaters = model, []

    @property
    def idle(self):
        """Whether no transform is left (after `merge`)."""
        return not updaters(self.model)

    def build(self, model):
        self.updaters = updaters(model)
        for updater in self.updaters:
            updater.build(model)

    @contextmanager
    def training(self):
        """The context in which the training step is traced."""
        with ExitStack() as stack:
            for updater in self.updaters:
                if hasattr(updater, "training"):
                    stack.enter_context(updater.training())
            yield

    def watch(self, gradients):
        for updater in self.updaters:
            if hasattr(updater, "watch"):
                updater.watch(gradients)

    def __call__(self):
        for updater in self.updaters:
            updater.after_update()


def update_transforms(model):
    """Let the model's training step look after its transforms, from the next `fit` on."""
    step = train_step_hook.attach(model)
    if updaters(model):
        step.transform_updater = TransformUpdater(model)
    else:
        step.transform_updater = None
        train_step_hook.detach_if_idle(model)
