"""Weight transforms: read a layer's weight through a chain of transforms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
