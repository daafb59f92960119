"""Between a batch as `fit` yields it and the named tensors of a serving signature."""

import re
import warnings
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError

#: What Hugging Face models take among their features to compute their own loss.
_HF_LABELS = {"labels", "start_positions", "end_positions", "next_sentence_label"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Features:
    """The features of a sample: arrays by name, and the way back to what the model is called with.

    A dict keeps its keys, a single tensor is called "inputs", those of a list or tuple "input_0",
    "input_1" and so on. Float features become float32, as `fit` and JSON requests have them.

    Attributes:
        arrays: dict of NumPy arrays by name, at most `most` examples each.

    Args:
        model: the model; a Hugging Face model's labels are dropped from its features.
        sample: features, or a tuple (features, labels[, sample_weight]), of arrays or tensors.
        most: int, examples kept. Default 32.

    Raises:
        InputError: no features, nested or unnamed ones, text, scalars, no or unequal numbers of
            examples.
    """

    def __init__(self, model, sample, most: int = 32):
        features = sample[0] if isinstance(sample, tuple) and 0 < len(sample) <= 3 else sample
        if isinstance(features, Mapping):
            named = dict(features)
            if _is_hugging_face(type(model)):
                named = {name: value for name, value in named.items() if name not in _HF_LABELS}
            self._restore = lambda tensors: tensors
        elif isinstance(features, list | tuple):
            named = {f"input_{i}": feature for i, feature in enumerate(features)}
            kind = type(features) if type(features) in (list, tuple) else list
            self._restore = lambda tensors: kind(tensors[name] for name in named)
        else:
            named = {"inputs": features}
            self._restore = lambda tensors: tensors["inputs"]
        if not named:
            raise InputError(
                "`sample` must hold at least one feature. Received: none. Give a batch as `fit` "
                "yields it."
            )
        arrays = {name: _array(name, value) for name, value in named.items()}
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) > 1 or not min(sizes.values()):
            raise InputError(
                "Every feature of `sample` must hold the same number of examples, at least 1. "
                f"Received (examples by feature): {sizes}. Give a batch as `fit` yields it."
            )
        self.arrays = {name: array[:most] for name, array in arrays.items()}
        self._fixed = _declared_lengths(model, list(named))

    def restore(self, tensors):
        """`tensors` (by name) in the structure that the model is called with."""
        return self._restore(dict(tensors))

    def specs(self, dynamic_length: bool = True) -> dict:
        """A `tf.TensorSpec` by name: any batch size, and any length of integer features.

        The second dimension of an integer feature of rank 2 or more is its length, unless the
        model declares that input with a fixed one.
        """
        specs = {}
        for name, array in self.arrays.items():
            shape = [None, *array.shape[1:]]
            if dynamic_length and array.ndim > 1 and array.dtype.kind in "iu":
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
    """The second dimension, by feature, that a functional model declares."""
    inputs = getattr(model, "inputs", None) or []
    inputs = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    own = [tensor.name.partition(":")[0] for tensor in inputs]
    # By name where the names are those of the features, else by position.
    order = [own.index(name) for name in names] if set(names) <= set(own) else range(len(inputs))
    shapes = [tuple(inputs[i].shape) for i in order]
    return {
        name: shape[1]
        for name, shape in zip(names, shapes, strict=False)
        if len(shape) > 1 and shape[1] is not None
    }


def computed(flavor, model, features, arrays) -> dict:
    """What a model in memory gives for arrays by the features' names: named arrays."""
    tensors = {name: tf.constant(array) for name, array in arrays.items()}
    outputs = flavor.call(model, features.restore(tensors), training=False)
    return {name: value.numpy() for name, value in flat_outputs(model, outputs).items()}


def described(specs) -> dict:
    """`{name: {"dtype", "shape"}}` of named tensors; None is any size."""
    return {
        name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for name, spec in specs.items()
    }


def flat_outputs(model, outputs) -> dict:
    """Outputs of a model as named tensors, floats as float32.

    A single tensor is called "logits" where the model has `num_classes` or `num_labels` (KerasHub,
    Model Garden and Hugging Face classifiers do), else "outputs". A dict keeps its keys, those of
    a list are called "output_0" and so on, and what is nested joins its names with "_". Entries
    that are None, and the loss of a Hugging Face output, are left out.
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
        # The identity gives each output a tensor of its own, also one that is an input.
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
    """`function(**tensors)` as one concrete function for `features`, of any length if it can be.

    Args:
        function: takes tensors by name, returns a dict of tensors.
        features: the sample's features.
        autograph: bool, whether `if` and `while` on tensors are converted.

    Returns:
        The concrete function. Where it only traces for the sample's length, that is kept, with a
        warning.

    Raises:
        InputError: it does not trace at all.
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
