"""Compatibility with Keras 3 and tf_keras: the only package that distinguishes them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
