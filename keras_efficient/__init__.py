"""Train a Transformer several times cheaper and ship it several times smaller.

Public names are loaded on first use: importing this package imports neither TensorFlow nor Keras.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
