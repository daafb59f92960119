"""Load a room's public names on first use, so that importing it imports no TensorFlow."""

import importlib
import sys


def lazily(room, homes):
    """The `__getattr__` and `__dir__` of a room.

    Args:
        room: the room's `__name__`.
        homes: dict of public name to the module that has it; a module path ending in the name
            itself, for a room of rooms, gives the module.

    Returns:
        The two functions, for the room to bind.
    """

    def __getattr__(name):
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        home = importlib.import_module(homes[name])
        value = home if homes[name] == f"{room}.{name}" else getattr(home, name)
        # Later look-ups need not come here; and a submodule of the same name cannot shadow it.
        setattr(sys.modules[room], name, value)
        return value

    def __dir__():
        return sorted({*vars(sys.modules[room]), *homes})

    return __getattr__, __dir__
