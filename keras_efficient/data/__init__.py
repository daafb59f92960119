"""Turn texts and labels into tokenized, length-bucketed and padded `tf.data` batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
