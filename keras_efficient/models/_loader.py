"""`loader_of`: the module that loads and saves the classifiers of a library."""

from types import ModuleType


def loader_of(library: str) -> ModuleType:
    """Return the module for "keras" (KerasHub) or "tf_keras" (Hugging Face TF).

    It is imported on first use, since each imports its library.
    """
    if library == "keras":
        from keras_efficient.models import _kerashub as loader
    else:
        from keras_efficient.models import _hugging_face as loader
    return loader
