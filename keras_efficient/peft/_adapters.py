"""Adapters: small trainable networks after the layers of a frozen model."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._output_projections import output_projections
from keras_efficient.architecture._weights import Weight, all_weights
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_call_wrapper, check_model, check_trainable
from keras_efficient.parametrize._parametrized_layer import CallWrapper
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._typing import Layers
from keras_efficient.peft._call_wrappers import CallWrapperReport, attach_and_report
from keras_efficient.peft._report import freeze_base


class Bottleneck(CallWrapper):
    """An adapter: the outputs y of a layer with a kernel become y + up(activation(down(y))).

    Args:
        weight: the layer's kernel.
        size: width of the bottleneck.
        activation: function of a tensor.
        seed: list of ints that seeds `down`.
        name: name of the adapters.

    Attributes:
        down: float32 `tf.Variable` [width, size], initially from N(0, 1 / width).
        down_bias: float32 `tf.Variable` [size], initially zero.
        up: float32 `tf.Variable` [size, width], initially zero.
        up_bias: float32 `tf.Variable` [width], initially zero.
    """

    def __init__(self, weight: Weight, size: int, activation: Callable, seed: list[int], name: str):
        self.kernel, self.size, self.activation = weight, size, activation
        self.seed, self.name = seed, name

    def build(self) -> None:
        width = self.kernel.matrix_shape[1]
        rng = np.random.default_rng(self.seed)
        down = rng.normal(0, 1 / math.sqrt(width), (width, self.size)).astype("float32")
        self.down = self.variable("down", (width, self.size), down, trainable=True)
        self.down_bias = self.variable("down_bias", (self.size,), 0.0, trainable=True)
        self.up = self.variable("up", (self.size, width), 0.0, trainable=True)
        self.up_bias = self.variable("up_bias", (width,), 0.0, trainable=True)

    def wrap_call(self, call, *args, **kwargs):
        y = call(*args, **kwargs)
        axes = len(self.kernel.outputs)
        flat = y if axes == 1 else tf.reshape(y, tf.concat([tf.shape(y)[:-axes], [-1]], 0))
        down, down_bias, up, up_bias = (
            tf.cast(v, y.dtype) for v in (self.down, self.down_bias, self.up, self.up_bias)
        )
        inner = self.activation(tf.tensordot(flat, down, 1) + down_bias)
        added = tf.tensordot(inner, up, 1) + up_bias
        if axes > 1:
            added = tf.reshape(added, tf.shape(y))
        added.set_shape(y.shape)
        return y + added

    def describe(self) -> str:
        return f"{self.name} {self.kernel.matrix_shape[1]}→{self.size}"


def adapters(
    model: Model,
    size: int = 64,
    *,
    activation: str | Callable[[Any], Any] = "gelu",
    where: str = "both",
    layers: Layers = None,
    train: str | bool | None = None,
    name: str = "adapter",
    seed: int = 0,
) -> CallWrapperReport:
    """Freeze a model and train small networks between its layers.

        y ← y + up(activation(down(y)))

    for the outputs y of attention and of the feed-forward part of every Transformer block, before
    dropout and the residual connection. `up` starts at zero, so at first the model's outputs do not
    change. Takes effect in the next `fit`; call it before or after `compile`.

    An adapter is not a function of a weight, so `ke.merge` and `model.save` to a `.keras` file
    raise. `model.save_weights`, `ke.save_adapters` and `ke.export` work. The report's `remove()`
    removes the adapters.

    Args:
        model: a built Keras 3 or tf_keras model.
        size: width of the bottleneck, at least 1. Default: 64.
        activation: name of a function in the library's `activations`, or a function of a tensor.
            Default: "gelu".
        where: "both" for adapters after attention and after the feed-forward part (Houlsby et al.),
            "output" for adapters after the feed-forward part only (Pfeiffer et al.), which are half
            as many. Default: "both".
        layers: which layers with a kernel get an adapter, as in `ke.parametrize.select`. Default:
            the output projections of the blocks, as `where` says. In a model with attention but no
            blocks, such as a functional one, those of attention and every other kernel with as many
            outputs except the model's heads.
        train: which other weights train. A regular expression is searched in their paths; False
            means none. Default: None, the model's heads: the last layer with a kernel before
            each output.
        name: name of the adapters; a model may have several. Default: "adapter".
        seed: seed of the initial values of `down`. Default: 0.

    Returns:
        A `CallWrapperReport`, to print, with a method `remove()`.

    Raises:
        TypeError: `model` is not a Keras model, or `layers` or `train` has another type.
        ValueError: an argument is out of range, the model has no attention and `layers` is not
            given, the outputs of a layer are not its last axes, the model has adapters of this
            name, a layer has `trainable=False`, or another strategy's scope is entered.

    Examples:
        >>> print(ke.adapters(model, size=4, layers="dense"))  # doctest: +ELLIPSIS
        adapter: ...

    Reference:
        Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP"; Pfeiffer et al. 2020,
        "AdapterHub: A Framework for Adapting Transformers".
    """
    if where not in ("both", "output"):
        raise ValueError(f"`where` must be 'both' or 'output'. Received: {where!r}.")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"`size` must be an int of at least 1. Received: {size!r}.")
    check_model(model, "ke.adapters")
    if layers is not None:
        weights = select(model, layers, caller="ke.adapters")
    else:
        weights = output_projections(model, feed_forward_only=where == "output")
    if not weights:
        raise ValueError(
            "ke.adapters follow attention and feed-forward layers. Received: "
            f"{model.name!r}, in which where={where!r} finds none. Choose the layers they follow "
            "by `layers=`."
        )
    for weight in weights:
        _check_last_axes(weight)
    check_trainable(weights, name)
    function = _activation(model, activation)
    check_call_wrapper([(w.path, w.layer) for w in weights], name, "ke.adapters")
    freeze_base(model, train)
    # Each seed depends only on the place of the weight, so that all workers draw the same values.
    places = {id(w.variable): place for place, w in enumerate(all_weights(model))}
    wrappers = [
        (w.layer_path, w.layer, Bottleneck(w, size, function, [seed, places[id(w.variable)]], name))
        for w in weights
    ]
    return attach_and_report(model, name, [weight.path for weight in weights], wrappers)


def _activation(model, activation):
    try:
        function = flavors.of(model).keras.activations.get(activation)
    except (ValueError, TypeError):
        function = None
    if function is None or not callable(function):
        raise ValueError(
            "`activation` must be the name of one of the library's activations, such as 'gelu', or "
            f"a function of a tensor. Received: {activation!r}."
        )
    return function


def _check_last_axes(weight):
    """Require that the outputs of the weight are the last axes of the layer's outputs."""
    equation = getattr(weight.layer, "equation", None)
    if isinstance(equation, str):
        kernel, output = equation.replace(" ", "").partition(",")[2].split("->")
        if not output.endswith("".join(kernel[axis] for axis in weight.outputs)):
            raise ValueError(
                "An adapter needs a layer whose outputs are its last axes. Received: "
                f"{weight.path!r} with the equation {equation!r}. Leave it out with `layers=`."
            )
