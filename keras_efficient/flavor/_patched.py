"""Context manager that gives an object other attributes for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def patched(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of `owner` for the duration of the block.

    Writes to the instance dictionary directly: Keras' own `__setattr__` would track the values as
    state of the model.
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
