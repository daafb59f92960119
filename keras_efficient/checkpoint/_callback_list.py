"""The callbacks that share a `fit` with one of them, which can pause the others."""

import sys
from typing import Any

from keras_efficient._errors import InputError


def find_callback_list(callback: Any) -> Any:
    """Return the `CallbackList` that is calling `callback.set_model`, or None.

    Both libraries let the list call its callbacks without telling them of each other, so it is
    looked up in the frames of the callers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        members = getattr(owner, "callbacks", None)
        if isinstance(members, list) and any(callback is member for member in members):
            return owner
        frame = frame.f_back
    return None


class OtherCallbacks:
    """The other callbacks of the `fit` that a callback is part of.

    Args:
        callback: the callback, whose `set_model` is being called.

    Attributes:
        callbacks: list of the others; empty before `begin`.
    """

    def __init__(self, callback: Any):
        self.callback, self.callbacks = callback, []
        self._list = find_callback_list(callback)

    def begin(self, *, paused: bool):
        """Collect the others, and call them before `callback`, or not at all if paused.

        The list of `fit` is replaced, not changed, because it may be being iterated over.
        """
        if self._list is None:
            return
        self.callbacks = [c for c in self._list.callbacks if c is not self.callback]
        if paused:
            self._list.callbacks = [self.callback]
        else:
            self.resume()

    def check_found(self):
        """Refuse a `fit` whose callbacks cannot be paused.

        Raises:
            InputError: the list was not found.
        """
        if self._list is None:
            raise InputError(
                "Resume must find the list in which `fit` keeps its callbacks, to pause the others "
                "while it draws data again. Received: a `fit` without such a list. Use the `fit` "
                "of Keras or tf_keras."
            )

    def resume(self):
        """Call the others again, each before `callback`."""
        if self._list is not None:
            self._list.callbacks = [*self.callbacks, self.callback]
