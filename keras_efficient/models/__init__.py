"""Get a pretrained Transformer, a task head and its tokenizer."""

from keras_efficient.lazy import lazily

_HOMES = {
    "Loaded": "keras_efficient.models.load_model",
    "keep_float32": "keras_efficient.models.float32",
    "load": "keras_efficient.models.load_model",
    "remat": "keras_efficient.models.rematerialisation",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
