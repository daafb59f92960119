"""Strategies for several devices and workers, clusters, sharding and the launcher."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
