"""Calls of the model's weight transforms during and after each update."""

from contextlib import ExitStack, contextmanager

from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import updaters
from keras_efficient.training import _train_step_hook as train_step_hook


class TransformUpdater:
    """Runs the updaters of a model's transforms as part of every update.

    An updater has a method `build(model)`, called outside of the graph, and `after_update()`,
    called in the graph on every replica after an update that was applied. It may have a context
    manager `training()`, inside which the training step is traced, to observe what passes through
    layers; and `watch(gradients)`, called in the graph with the `Gradients` of an update before
    they are applied.
    """

    def __init__(self, model: Model):
        self.model, self.updaters = model, []

    @property
    def idle(self) -> bool:
        """Whether the model has no transforms left, as after `ke.merge`."""
        return not updaters(self.model)

    def build(self, model: Model):
        """Collect the model's updaters and create their variables."""
        self.updaters = updaters(model)
        for updater in self.updaters:
            updater.build(model)

    @contextmanager
    def training(self):
        """Context in which the training step is traced."""
        with ExitStack() as stack:
            for updater in self.updaters:
                if hasattr(updater, "training"):
                    stack.enter_context(updater.training())
            yield

    def watch(self, gradients):
        """Show the gradients of an update to the updaters that watch them."""
        for updater in self.updaters:
            if hasattr(updater, "watch"):
                updater.watch(gradients)

    def __call__(self):
        for updater in self.updaters:
            updater.after_update()


def update_transforms(model: Model):
    """Make the training step update the model's transforms, from the next `fit` on."""
    hook = train_step_hook.attach(model)
    if updaters(model):
        hook.transform_updater = TransformUpdater(model)
    else:
        hook.transform_updater = None
        train_step_hook.detach_if_idle(model)
