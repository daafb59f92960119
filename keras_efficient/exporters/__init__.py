"""Write trained models as SavedModel, LiteRT or ONNX files, verified in a separate process."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
