"""Import modules of TF-MOT without the side effects of importing it."""

import functools
import importlib
import os
from types import ModuleType

_CORE = "tensorflow_model_optimization.python.core"


@functools.cache
def tf_mot(module: str) -> ModuleType:
    """Import a module of TF-MOT's core, such as "sparsity.keras.pruning_impl".

    Importing TF-MOT sets TF_USE_LEGACY_KERAS, which turns a `tf.keras` that has not been accessed
    yet into tf_keras (trap 30). So `tf.keras` is accessed first, and the variable is restored.

    Raises:
        ImportError: TF-MOT is not installed.
    """
    import tensorflow as tf

    tf.keras.__name__  # noqa: B018
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        return importlib.import_module(f"{_CORE}.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "Pruning and clustering use the arithmetic of tensorflow-model-optimization. Received: "
            f"an environment in which it cannot be imported ({error}). Install it with "
            "pip install 'keras_efficient[mot]'."
        ) from error
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before
