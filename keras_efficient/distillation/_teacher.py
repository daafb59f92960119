"""Teachers: models whose outputs a student learns from, as functions of features."""

import hashlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.training._logits import logits_of
from keras_efficient.training._loss_terms import predictions

#: What KerasHub, Hugging Face and Model Garden call token ids, the mask of real tokens, segments.
NAMES = (
    ("token_ids", "input_ids", "input_word_ids"),
    ("padding_mask", "attention_mask", "input_mask"),
    ("segment_ids", "token_type_ids", "input_type_ids"),
)


class Teacher:
    """A function of features whose outputs a student learns from.

    Attributes:
        name: str, for messages.
        compiles: bool, whether XLA can compile it.
    """

    name: str
    compiles = True

    def __call__(self, x: Any) -> Any:
        """Return the outputs for a batch of features."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return what tells teachers with different outputs apart."""
        return self.name

    def from_logits(self, outputs: Any) -> bool | None:
        """Whether outputs are logits; None if it is not known."""
        if hasattr(outputs, "logits") or (isinstance(outputs, dict) and "logits" in outputs):
            return True
        return False if isinstance(outputs, dict) and "probabilities" in outputs else None

    def as_logits(self, outputs: Any, from_logits: bool, independent: bool) -> list:
        """Return outputs as logits, a list of tensors.

        Args:
            outputs: what a call returned.
            from_logits: whether they are logits, if the teacher does not know it.
            independent: as in `logits_of`.
        """
        known = self.from_logits(outputs)
        from_logits = from_logits if known is None else known
        return [logits_of(output, from_logits, independent) for output in chosen_outputs(outputs)]


class KerasTeacher(Teacher):
    """A Keras 3 or tf_keras model, in inference mode.

    Args:
        model: a built model.
        recorder: the `BlockRecorder` of its blocks, or None. Default: None.
    """

    def __init__(self, model: Model, recorder: Any = None):
        self.model, self.flavor, self.recorder = model, flavors.of(model), recorder
        self.name = f"{type(model).__name__} {model.name!r}"

    def __call__(self, x):
        with self.flavor.library_context():
            return self.flavor.call(self.model, features_for(self.model, x), training=False)

    def fingerprint(self):
        digest = hashlib.sha256(type(self.model).__name__.encode())
        for value in self.flavor.weights(self.model):
            digest.update(f"{value.shape} {value.dtype}".encode() + value.numpy().tobytes())
        return digest.hexdigest()

    def from_logits(self, outputs):
        known = super().from_logits(outputs)
        if known is not None or getattr(self.model, "optimizer", None) is None:
            return known
        # KerasHub compiles its tasks, some of them without a loss.
        if not self.flavor.has_loss(self.model):
            return None
        return self.flavor.from_logits(self.model)


class FunctionTeacher(Teacher):
    """A function of features that returns outputs, or a dict with "logits" or "probabilities"."""

    def __init__(self, function: Callable):
        self.function, self.name = function, getattr(function, "__name__", type(function).__name__)

    def __call__(self, x):
        return self.function(x)


def chosen_outputs(outputs: Any) -> list:
    """Return the tensors of a teacher's outputs that are compared, in the order of the outputs."""
    if isinstance(outputs, dict) and not hasattr(outputs, "to_tuple"):
        for name in ("logits", "probabilities"):
            if name in outputs:
                return [outputs[name]]
    return list(map(tf.convert_to_tensor, predictions(outputs)))


def features_for(model: Model, x: Any) -> Any:
    """Return features under the names that a model of another library has for them.

    Args:
        model: the model.
        x: features of a batch; a dict with the names of KerasHub, Hugging Face or Model Garden is
            renamed, anything else is returned unchanged.
    """
    if not isinstance(x, dict):
        return x
    wanted = [
        name
        for args, _ in flavors.of(model).call_specs(model)
        if args and isinstance(args[0], dict)
        for name in args[0]
    ]
    if not wanted:
        wanted = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
    library = next((i for i, name in enumerate(NAMES[0]) if name in wanted), None)
    if library is None or NAMES[0][library] in x:
        return x
    renamed = {names[library]: x[name] for names in NAMES for name in names if name in x}
    functional = bool(getattr(model, "inputs", None))
    return {k: v for k, v in renamed.items() if k in wanted} if functional else renamed
