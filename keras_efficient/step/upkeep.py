"""What a training step does for the transforms of a model's weights."""

from contextlib import ExitStack, contextmanager

from keras_efficient.parametrize.attaching import keepers
from keras_efficient.step import hook


class Upkeep:
    """Lets the keepers of a model's transforms do their part of every update.

    A keeper has `build(model)`, called outside of the graph, and `after_update()`, called in it, in
    every replica, after an update that was applied. It may have a context manager `training()`, in
    which the training step is traced (to see what passes through layers), and `watch(gradients)`,
    called in the graph with an update's `Gradients` before it is applied.
    """

    def __init__(self, model):
        self.model, self.keepers = model, []

    @property
    def idle(self):
        """Whether no transform is left (after `merge`)."""
        return not keepers(self.model)

    def build(self, model):
        self.keepers = keepers(model)
        for keeper in self.keepers:
            keeper.build(model)

    @contextmanager
    def training(self):
        """The context in which the training step is traced."""
        with ExitStack() as stack:
            for keeper in self.keepers:
                if hasattr(keeper, "training"):
                    stack.enter_context(keeper.training())
            yield

    def watch(self, gradients):
        for keeper in self.keepers:
            if hasattr(keeper, "watch"):
                keeper.watch(gradients)

    def __call__(self):
        for keeper in self.keepers:
            keeper.after_update()


def look_after(model):
    """Let the model's training step look after its transforms, from the next `fit` on."""
    step = hook.attach(model)
    if keepers(model):
        step.upkeep = Upkeep(model)
    else:
        step.upkeep = None
        hook.detach_if_idle(model)
