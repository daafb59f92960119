"""Whole tasks made of the other packages: compress a trained model for a target."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
