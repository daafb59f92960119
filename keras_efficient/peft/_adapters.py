"""Adapters: small networks between a model's frozen layers."""

import math

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._architecture import output_projections
from keras_efficient.parametrize._checks import check_call_wrapper, check_model, check_trainable
from keras_efficient.parametrize._parametrized_layer import CallWrapper
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._weights import all_weights
from keras_efficient.peft._call_wrappers import attach_and_report
from keras_efficient.peft._report import TuningReport, freeze_base


class Bottleneck(CallWrapper):
    """y becomes y + up(activation(down(y))), of what a layer with a kernel gives.

    Attributes:
        down, down_bias, up, up_bias: `tf.Variable`s [width, size], [size], [size, width], [width];
            `up` and the biases are zeros at first.
    """

    def __init__(self, weight, size, activation, seed, name):
        self.kernel, self.size, self.activation = weight, size, activation
        self.seed, self.name = seed, name

    def build(self):
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

    def describe(self):
        return f"{self.name} {self.kernel.matrix_shape[1]}→{self.size}"


def adapters(
    model,
    size=64,
    *,
    activation="gelu",
    where="both",
    layers=None,
    train=None,
    name="adapter",
    seed=0,
) -> TuningReport:
    """Freeze a model and train small networks between its layers.

        y ← y + up(activation(down(y)))

    for what attention and the feed-forward of every Transformer block give, before dropout and the
    residual connection. At first the model computes what it did (`up` is zero; `down` is drawn from
    N(0, 1 / width)). Acts from the next `fit` on, before or after `compile`.

    An adapter is no function of a weight: `ke.merge` and `model.save` to a `.keras` file refuse.
    `model.save_weights`, `ke.save_adapters` and `ke.export` work; `remove()` of what this returns
    takes the adapters off.

    Args:
        model: a built Keras 3 or tf_keras model.
        size: int >= 1, the width inside an adapter. Default 64.
        activation: name of a function in the library's `activations`, or a function of a tensor.
        where: "both" (default): after attention and after the feed-forward, as Houlsby et al.;
            "output": after the feed-forward only, as Pfeiffer et al. (half as many).
        layers: which layers with a kernel get one instead; see `parametrize.select`. Default: as
            `where` says; the blocks are found by what is inside of them. In a model with attention
            but no blocks (a functional one): after attention and every other kernel that gives as
            many outputs, without the head.
        train: what else trains; as in `ke.lora`. Default: the model's head.
        name: str, of these adapters, to hold several at once. Default "adapter".
        seed: int, of the initial values of `down`. Default 0.

    Returns:
        A `Tuned`, to print, with a method `remove()`.

    Raises:
        ValueError: an argument out of range, no attention in the model and no `layers`, a layer
            whose outputs are not its last axes, or adapters of this name exist.

    Example:
        >>> print(ke.adapters(model, size=4, layers="dense"))  # doctest: +ELLIPSIS
        adapter: ...

    Reference:
        Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP"; Pfeiffer et al. 2020,
        "AdapterHub".
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
            f"{model.name!r}, in which where={where!r} finds none. Say after which layers by "
            "`layers=`."
        )
    for weight in weights:
        _check_last(weight)
    check_trainable(weights, name)
    function = _function(model, activation)
    check_call_wrapper([(w.path, w.layer) for w in weights], name, "ke.adapters")
    freeze_base(model, train)
    # The same on every worker, in every process, and whatever else is attached.
    places = {id(w.variable): place for place, w in enumerate(all_weights(model))}
    pairs = [
        (w.layer_path, w.layer, Bottleneck(w, size, function, [seed, places[id(w.variable)]], name))
        for w in weights
    ]
    return attach_and_report(model, name, [weight.path for weight in weights], pairs)


def _function(model, activation):
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


def _check_last(weight):
    """An adapter reads the last axes of what its layer gives."""
    equation = getattr(weight.layer, "equation", None)
    if isinstance(equation, str):
        kernel, output = equation.replace(" ", "").partition(",")[2].split("->")
        if not output.endswith("".join(kernel[axis] for axis in weight.outputs)):
            raise ValueError(
                "An adapter needs a layer whose outputs are its last axes. Received: "
                f"{weight.path!r} with the equation {equation!r}. Leave it out with `layers=`."
            )
