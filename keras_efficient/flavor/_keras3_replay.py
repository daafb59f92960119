"""Run a Keras 3 layer's `call` twice with the same random numbers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.backend.common import global_state

from keras_efficient.flavor._added_loss_error import added_loss_error


class Keras3Replay:
    """Two runs of a layer's `call`; see `Flavor.replay`.

    All state of Keras 3 lives in Keras variables, for which a `StatelessScope` substitutes values.
    Both runs happen in such a scope. After the first one, the updates of seed generators and of
    BatchNormalization's averages are applied to the variables. The second one reads the values
    from before and its updates are dropped.
    """

    @classmethod
    def of(cls, layer: Any, kwargs: dict[str, Any]) -> "Keras3Replay | None":
        """Return a replay of the call that is being made, or None if one run is enough."""
        context = global_state.get_global_attribute("current_call_ctx")
        training = kwargs.get("training", context and context.get_value("training"))
        if training is None or training is False or backend.in_stateless_scope():
            return None
        return cls(layer, copy.copy(context), backend.get_autocast_scope())

    def __init__(self, layer: Any, context: Any, autocast: Any):
        self.layer, self.context, self.autocast = layer, context, autocast
        self.before = []

    @contextmanager
    def first(self) -> Iterator[None]:
        """Surround the first run; raises a ValueError if the layer adds a loss."""
        scope = _RecordingScope()
        with scope:
            yield
        if scope.losses:
            raise added_loss_error(self.layer)
        # Nothing has been assigned yet.
        self.before = [(v, tf.identity(v.value)) for v, _ in scope.updates.values()]
        for variable, value in scope.updates.values():
            variable.assign(value)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Surround the second run."""
        outer = global_state.get_global_attribute("current_call_ctx")
        global_state.set_global_attribute("current_call_ctx", copy.copy(self.context))
        dtype = self.autocast.dtype if self.autocast is not None else None
        try:
            with backend.AutocastScope(dtype), keras.StatelessScope(self.before):
                yield
        finally:
            global_state.set_global_attribute("current_call_ctx", outer)


class _RecordingScope(keras.StatelessScope):
    """A scope that keeps the assigned variables besides their values."""

    def __init__(self):
        super().__init__(collect_losses=True)
        self.updates = {}

    def add_update(self, update):
        super().add_update(update)
        self.updates[id(update[0])] = update
