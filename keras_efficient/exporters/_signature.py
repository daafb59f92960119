"""Convert between batches of `fit` and the named tensors of a serving signature."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.flavor import Model

#: Features from which Hugging Face models compute their own loss.
_HF_LABELS = {"labels", "start_positions", "end_positions", "next_sentence_label"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Features:
    """Features of a sample as arrays by name, convertible back to the model's input structure.

    A dict keeps its keys, a single tensor is called "inputs", those of a list or tuple "input_0",
    "input_1" and so on. Float features become float32, as in `fit` and in JSON requests.

    Attributes:
        arrays: dict of NumPy arrays by name, at most `max_examples` examples each.

    Args:
        model: the model; labels among the features of a Hugging Face model are dropped.
        sample: features, or a tuple (features, labels[, sample_weight]), of arrays or tensors.
        max_examples: int, examples kept. Default: 32.

    Raises:
        InputError: there are no features or no examples, their numbers differ, or features are
            nested, unnamed, text or scalars.

    Examples:
        >>> import numpy as np
        >>> features = ke.exporters.Features(model, np.ones((4, 3)))
        >>> features.specs()
        {'inputs': TensorSpec(shape=(None, 3), dtype=tf.float32, name='inputs')}

    Reference:
        TensorFlow, `tf.TensorSpec`: https://www.tensorflow.org/api_docs/python/tf/TensorSpec
    """

    def __init__(self, model: Model, sample: Any, max_examples: int = 32):
        features = sample[0] if isinstance(sample, tuple) and 0 < len(sample) <= 3 else sample
        if isinstance(features, Mapping):
            named = dict(features)
            if _is_hugging_face(type(model)):
                named = {name: value for name, value in named.items() if name not in _HF_LABELS}
            self._restore = lambda tensors: tensors
        elif isinstance(features, list | tuple):
            named = {f"input_{i}": feature for i, feature in enumerate(features)}
            sequence = type(features) if type(features) in (list, tuple) else list
            self._restore = lambda tensors: sequence(tensors[name] for name in named)
        else:
            named = {"inputs": features}
            self._restore = lambda tensors: tensors["inputs"]
        if not named:
            raise InputError(
                "`sample` must hold at least one feature. Received: none. Give a batch as `fit` "
                "takes it."
            )
        arrays = {name: _array(name, value) for name, value in named.items()}
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) > 1 or not min(sizes.values()):
            raise InputError(
                "Every feature of `sample` must hold the same number of examples, at least 1. "
                f"Received (examples by feature): {sizes}. Give a batch as `fit` takes it."
            )
        self.arrays = {name: array[:max_examples] for name, array in arrays.items()}
        self._fixed = _declared_lengths(model, list(named))

    def restore(self, tensors):
        """Return named tensors in the structure that the model takes."""
        return self._restore(dict(tensors))

    def inputs(self) -> Any:
        """Return the sample as tensors in the structure that the model takes."""
        return self.restore({name: tf.constant(array) for name, array in self.arrays.items()})

    def specs(self, dynamic_length: bool = True) -> dict:
        """Return a `tf.TensorSpec` by name, for any batch size and any length.

        The length is the second dimension of integer and bool features of rank 2 or more. It is
        fixed where the model declares a fixed one, and where `dynamic_length` is False.
        """
        specs = {}
        for name, array in self.arrays.items():
            shape = [None, *array.shape[1:]]
            if dynamic_length and array.ndim > 1 and array.dtype.kind in "iub":
                shape[1] = self._fixed.get(name)
            specs[name] = tf.TensorSpec(shape, array.dtype, name=name)
        return specs


def _is_hugging_face(cls):
    return any(base.__module__.partition(".")[0] == "transformers" for base in cls.__mro__)


def _array(name, value):
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            "A feature's name must be a letter followed by letters, digits or underscores, since "
            f"it becomes a name in the signature. Received: {name!r}. Rename that feature."
        )
    if isinstance(value, tf.RaggedTensor | tf.SparseTensor | Mapping | list | tuple):
        raise InputError(
            "A feature must be one dense array or tensor. Received: feature "
            f"{name!r} of type {type(value).__name__}. Pad it, or flatten the features to one dict."
        )
    array = np.asarray(value)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype("float32")
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise InputError(
            "A feature must be numbers, with the examples as its first dimension. Received: "
            f"feature {name!r} of dtype {array.dtype} and shape {array.shape}. Tokenise text "
            "first, and give a whole batch."
        )
    return array


def _declared_lengths(model, names):
    """Return the second dimensions that a functional model declares, by feature."""
    inputs = getattr(model, "inputs", None) or []
    inputs = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    own = [tensor.name.partition(":")[0] for tensor in inputs]
    # Inputs are matched by name if the names are those of the features, else by position.
    order = [own.index(name) for name in names] if set(names) <= set(own) else range(len(inputs))
    shapes = [tuple(inputs[i].shape) for i in order]
    return {
        name: shape[1]
        for name, shape in zip(names, shapes, strict=False)
        if len(shape) > 1 and shape[1] is not None
    }


def call_by_name(flavor, model, features, arrays) -> dict:
    """Call a model in memory with named arrays; return its outputs as named arrays."""
    tensors = {name: tf.constant(array) for name, array in arrays.items()}
    outputs = flavor.call(model, features.restore(tensors), training=False)
    return {name: value.numpy() for name, value in flat_outputs(model, outputs).items()}


def describe_specs(specs) -> dict:
    """Return `{name: {"dtype", "shape"}}` of named tensors; None is any size."""
    return {
        name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for name, spec in specs.items()
    }


def flat_outputs(model, outputs) -> dict:
    """Return a model's outputs as named tensors, floats as float32.

    A single tensor is called "logits" if the model has `num_classes` or `num_labels`, as KerasHub,
    Model Garden and Hugging Face classifiers have, else "outputs". A dict keeps its keys, tensors
    of a list are called "output_0" and so on, and the names of nested outputs are joined with "_".
    Entries that are None, and the loss of a Hugging Face output, are left out.
    """
    if any(base.__name__ == "ModelOutput" for base in type(outputs).__mro__):
        outputs = {name: value for name, value in outputs.items() if name != "loss"}
    if not isinstance(outputs, Mapping | list | tuple):
        classifies = any(getattr(model, name, None) for name in ("num_classes", "num_labels"))
        outputs = {"logits" if classifies else "outputs": outputs}
    elif not isinstance(outputs, Mapping):
        outputs = {f"output_{i}": value for i, value in enumerate(outputs)}
    flat = {}
    for name, value in _leaves(outputs):
        if name in flat:
            raise InputError(
                "Nested outputs are named by their joined keys, which must differ. Received two "
                f"called {name!r}. Rename one in the model."
            )
        value = tf.convert_to_tensor(value)
        # tf.identity gives an output that is also an input a separate tensor.
        flat[name] = tf.cast(value, tf.float32) if value.dtype.is_floating else tf.identity(value)
    return flat


def _leaves(outputs, prefix=""):
    items = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs)
    for key, value in items:
        name = prefix + re.sub(r"[^A-Za-z0-9_]", "_", str(key))
        if isinstance(value, Mapping | list | tuple):
            yield from _leaves(value, f"{name}_")
        elif value is not None:
            yield name, value


def trace(function, features: Features, autograph: bool):
    """Trace `function(**tensors)` as a concrete function, for any length if possible.

    Args:
        function: function of tensors by name that returns a dict of tensors.
        features: the sample's features.
        autograph: bool, whether `if` and `while` on tensors are converted.

    Returns:
        The concrete function. If it can only be traced for the sample's length, it is, with a
        warning.

    Raises:
        InputError: it cannot be traced at all.
    """

    def concrete(specs):
        return tf.function(function, autograph=autograph).get_concrete_function(**specs)

    specs, fixed = features.specs(), features.specs(dynamic_length=False)
    try:
        return concrete(specs)
    except InputError:
        raise
    except Exception:
        try:
            result = concrete(fixed)
        except Exception as error:
            raise InputError(
                "An exported model must run as a TensorFlow graph. Received a model that runs "
                f"eagerly only; as a graph it raised {type(error).__name__}: {error}. Use "
                "TensorFlow or Keras operations in its `call`, without NumPy and `float()`."
            ) from error
    lengths = {name: spec.shape[1] for name, spec in fixed.items() if spec != specs[name]}
    warnings.warn(
        "This model only runs at one length: its signature takes the sample's "
        f"({lengths}) instead of any.",
        stacklevel=3,
    )
    return result
