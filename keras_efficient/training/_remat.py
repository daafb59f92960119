"""Rematerialisation: recompute activations in the backward pass instead of keeping them."""

import re
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from keras_efficient import flavor as flavors
from keras_efficient.architecture._blocks import transformer_blocks
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.flavor import Layer, Model
from keras_efficient.training._stateful_draws import refused_draws

_RULE = "A layer whose activations are recomputed"
_REMEDY = "leave the layer out of `ke.remat`'s `layers`"


@dataclass(frozen=True)
class RematReport:
    """The layers that `ke.remat` rematerialises; `print` shows them.

    Attributes:
        layers: tuple of str, paths of the layers whose activations are recomputed.
    """

    layers: tuple[str, ...]

    def __str__(self):
        if not self.layers:
            return "remat: off"
        number = len(self.layers)
        return (
            f"remat: {number} layer{'s' * (number > 1)} recomputed in the backward pass: "
            + ", ".join(self.layers)
        )


def remat(
    model: Model, layers: str | Callable[[Layer], bool] | Sequence[Layer] | bool | None = None
) -> RematReport:
    """Recompute the activations inside layers in the backward pass instead of keeping them.

    Rematerialisation, or gradient checkpointing: in training, the activations inside each chosen
    layer are discarded after the forward pass and computed a second time when their gradients are
    needed. With L equal blocks of A bytes of activations and I bytes of input each, a step holds
    L·I + A bytes instead of L·A, for one more forward pass of the blocks.

    The result is exact: dropout draws the same mask both times, and state is updated once (seed
    generators, the moving averages of BatchNormalization). In Keras 3 the masks are also those of
    a run without `ke.remat`; in tf_keras they differ from those, but are as random.

    It applies to calls in training mode, from the next `fit` on, and works with `ke.accumulate`,
    mixed precision and XLA. The setting belongs to the model in memory: saving leaves it out, so
    call `ke.remat` again after loading. A second call replaces the choice of layers.

    Args:
        model: a built Keras 3 or tf_keras model.
        layers: the layers to recompute: a regular expression searched in their paths, such as
            "encoder/layer_1"; a function `layer -> bool`; a list of layers; or False for none,
            which restores the model. Of nested layers only the outermost counts. Default: None,
            the model's Transformer blocks: those that `ke.architecture.describe` describes, and of
            other layers the innermost with both attention and another kernel inside.

    Returns:
        A `RematReport`; `print(ke.remat(model))` shows the layers.

    Raises:
        ValueError: if no layer matches, the model is not built, or a listed layer is not inside
            the model; in `fit`, if a layer adds a loss in its call, or draws random numbers that
            cannot be repeated because they do not come from the library's generators, such as
            those of `tf.random.uniform`.
        TypeError: if `model` is not a Keras model, or `layers` is none of the above.

    Examples:
        >>> report = ke.remat(model, "dense")
        >>> len(report.layers)
        1
        >>> print(ke.remat(model, False))
        remat: off

    Reference:
        Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". Keras 3's `RematScope`
        applies to layers created inside it, and draws other dropout masks in the backward pass;
        `tf.recompute_grad` takes no keyword arguments in a graph.
    """
    flavor = flavors.of(model)
    if not model.built:
        raise ValueError(
            "A model must be built before its layers can be chosen: they may not exist yet. "
            f"Received: {type(model).__name__} {model.name!r}, not built. Call it on a batch first."
        )
    inside = dict(layer_paths(model))
    chosen = _outermost(_choose(model, inside, layers))
    for layer in inside.values():
        if recomputed := recomputed_call(layer):
            recomputed.detach()
    for layer in chosen.values():
        # Bypasses the library's __setattr__, which would track the attribute.
        object.__setattr__(layer, "call", _Recomputed(layer, flavor).call)
    model.train_function = None
    return RematReport(tuple(chosen))


# --- which layers --------------------------------------------------------------------------------


def _choose(model, inside, layers):
    if layers is False:
        return {}
    if layers is None:
        rule, found = "the model's Transformer blocks", transformer_blocks(model)
    elif isinstance(layers, str):
        rule = f"layers={layers!r}, searched in the layers' paths"
        found = {path: layer for path, layer in inside.items() if re.search(layers, path)}
    elif isinstance(layers, list | tuple):
        paths = {id(layer): path for path, layer in inside.items()}
        foreign = [layer for layer in layers if id(layer) not in paths]
        if foreign:
            raise ValueError(
                "`layers` must be layers inside the model. Received: "
                f"{getattr(foreign[0], 'name', foreign[0])!r}, which is not inside {model.name!r}. "
                "Take them from `model.layers` or from a layer's attributes."
            )
        rule = "an empty list"
        found = {paths[id(layer)]: layer for layer in layers}
    elif callable(layers) and not hasattr(layers, "_flatten_layers"):
        rule, found = (
            f"layers={layers!r}",
            {p: layer for p, layer in inside.items() if layers(layer)},
        )
    else:
        raise TypeError(
            "`layers` must be None, False, a regular expression, a function of a layer or a list "
            f"of layers. Received: {layers!r}. Put a single layer in a list."
        )
    if not found:
        paths = list(inside)
        shown = ", ".join(paths[:12]) + (", ..." if len(paths) > 12 else "")
        raise ValueError(
            f"There must be a layer to recompute. Received: {rule}, of which {model.name!r} has "
            f"none. Choose layers by a regular expression: {shown}. False switches remat off."
        )
    return found


def _is_inside(path, paths):
    parts = path.split("/")
    return any("/".join(parts[:n]) in paths for n in range(1, len(parts)))


def _outermost(chosen):
    return {path: layer for path, layer in chosen.items() if not _is_inside(path, chosen)}


# --- one layer -----------------------------------------------------------------------------------


class _Recomputed:
    """Holder of the method that replaces the `call` of one layer instance."""

    def __init__(self, layer, flavor):
        self.layer, self.flavor = layer, flavor
        self.own = vars(layer).get("call")

    @property
    def plain(self):
        """The `call` that the layer had: its own attribute, or its class's at this moment."""
        return type(self.layer).call.__get__(self.layer) if self.own is None else self.own

    def call(self, *args, **kwargs):
        run = self.flavor.replay(self.layer, kwargs)
        call = self.flavor.converted(self.layer, self.plain)
        return call(*args, **kwargs) if run is None else recompute(call, run, args, kwargs)

    #: Tells AutoGraph not to convert this method; `converted` converts the layer's own code.
    call.autograph_info__ = None  # pyright: ignore[reportFunctionMemberAccess]

    def detach(self):
        """Restore the layer's `call`."""
        object.__delattr__(self.layer, "call")
        if self.own is not None:
            object.__setattr__(self.layer, "call", self.own)


def recomputed_call(layer: Layer) -> "_Recomputed | None":
    """Return the holder of the `call` of a layer that is recomputed, or None."""
    own = getattr(vars(layer).get("call"), "__self__", None)
    return own if isinstance(own, _Recomputed) else None


def recompute(call: Callable, run: Any, args: tuple, kwargs: dict) -> Any:
    """Return `call(*args, **kwargs)`; it is called again for its gradient, keeping only the inputs.

    Args:
        call: a function of nests of tensors.
        run: has the contexts `first()` and `again()` in which `call` is called.
        args: positional arguments, nests of tensors; float tensors get gradients.
        kwargs: keyword arguments, likewise.

    Returns:
        The result of `call`.
    """
    leaves = tf.nest.flatten((args, kwargs), expand_composites=True)
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def arguments(tensors):
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            mask = getattr(leaves[place], "_keras_mask", None)
            if mask is not None:
                tensor._keras_mask = mask
            filled[place] = tensor
        return tf.nest.pack_sequence_as((args, kwargs), filled, expand_composites=True)

    surroundings = copy_context()
    with (
        record.stop_recording(),
        record.VariableWatcher() as watcher,
        run.first(),
        refused_draws(_RULE, _REMEDY),
    ):
        result = call(*args, **kwargs)
    results = tf.nest.flatten(result, expand_composites=True)
    given = [i for i, leaf in enumerate(results) if _is_float(leaf)]
    variables = [v for v in watcher.watched_variables() if v.dtype.is_floating]

    @tf.custom_gradient
    def outputs(*inputs):
        # The variables' values are inputs too, so that their gradients are returned.
        tensors = inputs[: len(places)]

        def gradient(*upstream):
            late = _after(upstream, tensors)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*late, *variables])
                passed, named = arguments(late)
                with run.again():
                    repeated = surroundings.copy().run(call, *passed, **named)
                    second = tf.nest.flatten(repeated, expand_composites=True)
            differentiate: Any = tape.gradient
            return differentiate(
                [second[i] for i in given],
                [*late, *variables],
                output_gradients=upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )

        return [tf.identity(results[i]) for i in given], gradient

    values = [tf.convert_to_tensor(variable) for variable in variables]
    tensors: Any = outputs(*[leaves[i] for i in places], *values)
    for place, tensor in zip(given, tensors, strict=True):
        mask = getattr(results[place], "_keras_mask", None)
        if mask is not None:
            tensor._keras_mask = mask
        results[place] = tensor
    return tf.nest.pack_sequence_as(result, results, expand_composites=True)


def _is_float(leaf):
    return isinstance(leaf, tf.Tensor) and leaf.dtype.is_floating


def _after(upstream, tensors):
    """Return `tensors`, delayed until `upstream` is known, so that not all blocks run at once.

    It is a data dependency, as in `tf.recompute_grad`, because XLA drops control dependencies and
    TensorFlow would merge the second computation with the first and keep its results.
    """
    if tf.executing_eagerly():
        return list(map(tf.identity, tensors))
    first = tf.reduce_max(tf.reshape(upstream[0], [-1])[:1])
    known = tf.cast(first, tf.bool)
    zero = tf.where(known == known, 0.0, float("nan"))
    with tf.control_dependencies(upstream):
        return [tensor + tf.cast(zero, tensor.dtype) for tensor in tensors]
