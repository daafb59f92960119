"""Compare a model with itself, computed another way, on a few examples."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._embeddings import embeddings
from keras_efficient.flavor import Model

#: Lengths of the made-up examples; one has no real token.
_LENGTHS = (7, 3, 1, 0, 5)
#: Largest difference, relative to the largest number.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}
#: The same for examples without tokens. Models that mask scores by adding -10,000 have only the
#: digits of so large a number left there, and how these are rounded depends on the CPU.
_WITHOUT_TOKENS = 1e-3


class Comparison:
    """Outputs and gradients of a model on one batch, to be compared with later ones.

    Args:
        model: a built model.
        sample: features that the model accepts, or None to make some up.
        ignore_padding: whether outputs `[batch, length, ...]` are compared for real tokens only.

    Raises:
        ValueError: the inputs of the model are unknown and there is no sample.
    """

    def __init__(self, model: Model, sample: Any, ignore_padding: bool):
        self.model, self.ignore_padding = model, ignore_padding
        self.made_up = sample is None
        self.features = tf.nest.map_structure(
            tf.convert_to_tensor, made_up(model) if sample is None else sample
        )
        dtypes = {layer.compute_dtype for layer in model._flatten_layers()} - {None}
        self.tolerance = max(TOLERANCE.get(str(dtype), 0.0) for dtype in dtypes)
        value = flavors.of(model).value
        self.variables = list(map(value, model.trainable_variables))

    def begin(self, gradients: bool = True) -> None:
        """Compute the outputs and, if wanted, the gradients that later ones are compared with."""
        self.reference = self._compute(gradients)
        finite = all(np.isfinite(value).all() for value in self.reference[0].values())
        if not finite and self.made_up:
            # The model has no output for an example without tokens, such as a mean over none.
            self.features = made_up(self.model, [max(n, 1) for n in _LENGTHS])
            self.reference = self._compute(gradients)

    def difference(self, gradients: bool = True) -> str | None:
        """Return what differs now, for a message; None if nothing does."""
        outputs, found = self._compute(gradients)
        if [*outputs] != [*self.reference[0]]:
            return "the number of outputs differs"
        for name, value in outputs.items():
            known = self.reference[0][name]
            if share := self._output_difference(value, known):
                return f"{name} differs by {share} of its size"
        # Rounding is as large as in others where a gradient is zero otherwise, as of a key's bias.
        largest = max(map(_largest, self.reference[1]), default=0.0)
        for variable, value, known in zip(self.variables, found, self.reference[1], strict=False):
            if share := self._difference(value, known, largest):
                return f"the gradient of {variable.name} differs by {share} of the largest one"
        return None

    def _output_difference(self, value, reference):
        """As `_difference`, with more tolerance for examples without tokens."""
        scale, empty = _largest(reference), self._without_tokens()
        if value.shape != reference.shape or value.shape[:1] != empty.shape:
            return self._difference(value, reference, scale)
        loose = max(self.tolerance, _WITHOUT_TOKENS)
        return self._difference(value[~empty], reference[~empty], scale) or self._difference(
            value[empty], reference[empty], scale, loose
        )

    def _without_tokens(self):
        """Which examples have no tokens, as a bool array."""
        mask = _mask(self.features)
        if mask is None or len(mask.shape) != 2:
            return np.zeros([0], bool)
        return ~np.asarray(mask).astype(bool).any(1)

    def _difference(self, value, reference, scale, tolerance=None):
        """The difference as a share of `scale`, infinite for other shapes; None if it is small."""
        same = value.shape == reference.shape
        share = _largest(value - reference) / max(scale, 1e-30) if same else math.inf
        allowed = self.tolerance if tolerance is None else tolerance
        return None if share <= allowed else f"{share:.1e}"

    def _compute(self, gradients):
        """Outputs by name and, if wanted, the gradients of a weighted sum of them, as arrays."""
        outputs, found = run_on_one_replica(self.model, lambda: self._tensors(gradients))
        outputs = {name: tf.cast(value, tf.float64).numpy() for name, value in outputs.items()}
        return outputs, [tf.cast(value, tf.float64).numpy() for value in found]

    def _tensors(self, gradients):
        with tf.GradientTape() as tape:
            result = self.model(self.features, training=False)
            outputs = {
                f"output {number}": self._kept(tensor)
                for number, tensor in enumerate(tf.nest.flatten(_as_nest(result)))
                if isinstance(tensor, tf.Tensor) and tensor.dtype.is_floating
            }
            total, empty = tf.constant(0.0), self._without_tokens()
            for tensor in outputs.values():
                # Any weights will do that are the same each time.
                weights = np.random.default_rng(0).normal(size=_shape(tensor))
                if weights.shape[:1] == empty.shape:
                    weights[empty] = 0
                total += tf.reduce_sum(tf.cast(tensor, tf.float32) * weights.astype("float32"))
        if not gradients:
            return outputs, []
        found: Any = tape.gradient(total, self.variables)
        return outputs, [tf.zeros([]) if g is None else tf.convert_to_tensor(g) for g in found]

    def _kept(self, tensor):
        """An output without its values at padding, if those are to be ignored."""
        mask = _mask(self.features)
        if not self.ignore_padding or mask is None or len(tensor.shape) < 3:
            return tensor
        if tensor.shape[:2] != mask.shape:
            return tensor
        return tf.boolean_mask(tensor, mask > 0)


def run_on_one_replica(model: Model, function: Callable[[], Any]) -> Any:
    """Return what a function that calls a model returns on the first of its replicas."""
    variable = flavors.of(model).value(model.weights[0])
    strategy = getattr(variable, "_distribute_strategy", None)
    if strategy is None or not tf.distribute.in_cross_replica_context():
        return function()
    # Variables of several replicas are read in one of them.
    return tf.nest.map_structure(
        lambda value: strategy.experimental_local_results(value)[0], strategy.run(function)
    )


def _largest(array):
    return float(np.max(np.abs(array), initial=0.0))


def _shape(tensor: Any) -> Any:
    """The shape of an eager tensor, for NumPy."""
    return tuple(tensor.shape)


def _as_nest(result):
    return dict(result) if hasattr(result, "to_tuple") else result


def _mask(features):
    if not isinstance(features, dict):
        return None
    found = (x for name, x in features.items() if "mask" in name and "position" not in name)
    return next(found, None)


def made_up(model: Model, lengths: Sequence[int] = _LENGTHS) -> Any:
    """Return texts of unequal lengths, or numbers, by the names and shapes of a model's inputs."""
    tables = embeddings(model)
    rows = [weight.shape[0] for weight in tables.token]
    vocabulary = min([n for n in rows if n >= 2 * max(lengths)], default=0)
    positions = [weight.shape[-2] for weight in tables.position]
    lengths = [min(length, *positions) if positions else length for length in lengths]
    problem = "its inputs are unknown"
    for args, kwargs in flavors.of(model).call_specs(model):
        if len(args) != 1 or kwargs:
            continue
        specs = args[0]
        if isinstance(specs, dict):
            # A model may have been built on token ids alone, and accept a mask.
            accepted = inspect.signature(model.call).parameters
            ids = next((spec for name, spec in specs.items() if name == "input_ids"), None)
            if ids is not None and "attention_mask" in accepted:
                specs = {**specs, "attention_mask": ids}
            named = [(name, specs[name]) for name in specs]
        else:
            flat = tf.nest.flatten(specs)
            # Specifications of Keras 3 have no names, its inputs have.
            known = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
            known = known if len(known) == len(flat) else [""] * len(flat)
            named = [(spec.name or name, spec) for name, spec in zip(known, flat, strict=True)]
        values = [_made_up(name, spec, vocabulary, lengths) for name, spec in named]
        if all(value is not None for value in values):
            return (
                dict(zip(specs, values, strict=True))
                if isinstance(specs, dict)
                else tf.nest.pack_sequence_as(specs, values)
            )
        problem = "its inputs are " + ", ".join(
            f"{name or 'unnamed'} {spec.dtype.name}{list(spec.shape)}" for name, spec in named
        )
    raise ValueError(
        "Examples can be made up for inputs of token ids, masks and segments, and for numbers of a "
        "fixed shape, such as images. Received: "
        f"{type(model).__name__} {model.name!r}; {problem}. Pass a batch of features as `sample`."
    )


def _made_up(name, spec: Any, vocabulary, lengths):
    sizes = [] if spec.shape is None or spec.shape.rank is None else list(spec.shape)
    numbers = spec.dtype.is_floating and "mask" not in name and None not in sizes[1:]
    if len(sizes) > 1 and numbers:
        values = np.random.default_rng(0).normal(size=(len(lengths), *sizes[1:]))
        return tf.constant(values, spec.dtype)
    if len(sizes) != 2 or not (spec.dtype.is_integer or "mask" in name or spec.dtype == tf.bool):
        return None
    fixed = sizes[1]
    length = max(lengths) if fixed is None else fixed
    lengths = np.minimum(lengths, length)
    if "position" in name:
        # Those of all tokens, again and again.
        values = np.arange(length)[None] % np.maximum(lengths, 1)[:, None]
    elif "mask" in name:
        values = np.arange(length)[None] < lengths[:, None]
    elif "segment" in name or "type" in name:
        values = np.zeros((len(lengths), length))
    elif vocabulary:
        values = np.random.default_rng(0).integers(1, vocabulary, (len(lengths), length))
        # Models may take their mask from the ids.
        values[np.arange(length)[None] >= lengths[:, None]] = 0
    else:
        return None
    return tf.cast(tf.constant(values), spec.dtype)
