"""Type aliases of weight transforms."""

from collections.abc import Callable
from typing import Any, TypeAlias

#: The argument `layers` of methods: a regular expression searched in the weights' paths, a layer
#: class or a tuple of them, a list of layers, a function of a layer, or None for the default.
Layers: TypeAlias = str | type | tuple[Any, ...] | list[Any] | Callable[[Any], Any] | None
