"""TF-MOT's arithmetic, imported where it is needed and without its side effects."""

import functools
import importlib
import os

_CORE = "tensorflow_model_optimization.python.core"


@functools.cache
def tf_mot(module):
    """A module of TF-MOT's core, such as "sparsity.keras.pruning_impl".

    Importing TF-MOT sets TF_USE_LEGACY_KERAS, which turns `tf.keras` into tf_keras wherever it has
    not been looked at yet (trap 30): here it has been, and the variable is put back.

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
