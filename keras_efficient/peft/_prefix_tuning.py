"""Prefix tuning: train keys and values before those of a model's attention layers."""

import inspect
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._attention_layers import Attention, attention_layers
from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._weights import all_weights
from keras_efficient.flavor import Model
from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._checks import check_call_wrapper, check_model, check_trainable
from keras_efficient.parametrize._parametrized_layer import CallWrapper
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._typing import Layers
from keras_efficient.peft._call_wrappers import CallWrapperReport, attach_and_report
from keras_efficient.peft._report import freeze_base


class PrefixVectors(CallWrapper):
    """Prepend trainable vectors to the sequence of keys or values that a projection computes.

    Args:
        length: number of vectors.
        seed: list of ints that seeds their initial values.
        name: name of the prefix.

    Attributes:
        vectors: float32 `tf.Variable` [length, *outputs], initially from N(0, 0.02²).
    """

    def __init__(self, length: int, seed: list[int], name: str):
        self.length, self.seed, self.name = length, seed, name

    def build(self) -> None:
        # The kernel is [inputs, outputs] or [inputs, heads, size].
        shape = (self.length, *self.layer.kernel.shape[1:])
        rng = np.random.default_rng(self.seed)
        initial = rng.normal(0, 0.02, shape).astype("float32")
        self.vectors = self.variable("vectors", shape, initial, trainable=True)

    def wrap_call(self, call, *args, **kwargs):
        outputs = call(*args, **kwargs)
        vectors = tf.cast(self.vectors, outputs.dtype)
        batch = tf.concat([tf.shape(outputs)[:1], tf.shape(vectors)], 0)
        return tf.concat([tf.broadcast_to(vectors, batch), outputs], 1)

    def describe(self) -> str:
        return f"{self.name} of {self.length}"


class PrefixMask(CallWrapper):
    """Extend the mask of an attention layer by the `PrefixVectors`, which are always visible.

    Args:
        attention: the `Attention` layer.
        length: number of vectors.
        name: name of the prefix.
    """

    def __init__(self, attention: Attention, length: int, name: str):
        self.attention, self.length, self.name = attention, length, name

    def wrap_call(self, call, *args, **kwargs):
        layer: Any = self.layer
        original: Any = original_class(layer)
        signature = inspect.signature(original.call)
        given = signature.bind(layer, *args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        del given["self"]
        if self.attention.additive:
            mask = given.get("attention_mask")
            if mask is not None:
                given["attention_mask"] = self._extend(mask, 0, tf.shape(mask)[-1])
            return call(**given)
        length = tf.shape(given["value"])[1]
        if given.get("use_causal_mask") and given.get("attention_mask") is None:
            # With no explicit mask Keras 3 masks inside its kernel, which would count the prefix
            # as positions of the sequence.
            shape = [1, tf.shape(given["query"])[1], length]
            given["attention_mask"] = tf.ones(shape, tf.bool)
        compute_mask = layer._compute_attention_mask

        @tf.autograph.experimental.do_not_convert
        def compute_attention_mask(*args, **kwargs):
            mask = compute_mask(*args, **kwargs)
            return mask if mask is None else self._extend(mask, 1, length)

        with patched(layer, _compute_attention_mask=compute_attention_mask):
            return call(**given)

    def _extend(self, mask, visible, length):
        """Return a mask [..., keys] with the prefix before its last axis, as value `visible`."""
        mask = tf.convert_to_tensor(mask)
        # The last axis may be 1, for all keys.
        mask = tf.broadcast_to(mask, tf.concat([tf.shape(mask)[:-1], [length]], 0))
        front = tf.concat([tf.shape(mask)[:-1], [self.length]], 0)
        return tf.concat([tf.fill(front, tf.cast(visible, mask.dtype)), mask], -1)

    def describe(self) -> str:
        return f"{self.name} of {self.length}"


def prefix_tuning(
    model: Model,
    length: int = 16,
    *,
    train: str | bool | None = None,
    name: str = "prefix",
    layers: Layers = None,
    seed: int = 0,
    scope: str = "deep",
) -> CallWrapperReport:
    """Freeze a model and train keys and values before those of its attention layers.

        softmax(Q · [P_K; K]ᵀ / √d) · [P_V; V]

    P_K and P_V have `length` rows, which are the same for every example and never masked. They are
    trained directly, without the network by which Li & Liang reparametrize them in training
    (P-tuning v2 finds little use in it). They start from N(0, 0.02²), so unlike with LoRA or
    adapters, outputs change at once: keys near zero take a share of the attention.

    Supported are Keras' and tf_keras' MultiHeadAttention, as in the encoders of KerasHub and Model
    Garden, and Hugging Face's BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, LayoutLM and ALBERT.
    Decoders with a cache of keys and values are not. Takes effect in the next `fit`; call it before
    or after `compile`.

    A prefix is not a function of a weight, so `ke.merge` and `model.save` to a `.keras` file raise.
    `model.save_weights`, `ke.save_adapters` and `ke.export` work. The report's `remove()` removes
    the prefix.

    Args:
        model: a built Keras 3 or tf_keras model.
        length: number of vectors per attention layer, at least 1. Default: 16.
        train: which other weights train. A regular expression is searched in their paths; False
            means none. Default: None, the model's heads: the last layer with a kernel before
            each output.
        name: name of the prefix; a model may have several. Default: "prefix".
        layers: which attention layers, by their weights, as in `ke.parametrize.select`. Default:
            None, all.
        seed: seed of the initial values. Default: 0.
        scope: "deep" for a prefix in every chosen attention layer, "shallow" for one in the first
            only. The latter resembles prompt tuning (Lester et al. 2021), whose vectors precede the
            embeddings and lengthen the sequence in all layers, in pooling and in the outputs; that
            cannot be added to an arbitrary model from outside. Default: "deep".

    Returns:
        A `CallWrapperReport`, to print, with a method `remove()`.

    Raises:
        TypeError: `model` is not a Keras model, or `layers` or `train` has another type.
        ValueError: an argument is out of range, no attention layer is selected or one does not
            support a prefix, the model has a prefix of this name, a layer has `trainable=False`, or
            another strategy's scope is entered.

    Examples:
        >>> import keras
        >>> attention = keras.layers.MultiHeadAttention(2, 4)
        >>> ids = keras.Input((None,), dtype="int32")
        >>> x = keras.layers.Embedding(50, 8)(ids)
        >>> x = keras.layers.GlobalAveragePooling1D()(attention(x, x))
        >>> encoder = keras.Model(ids, keras.layers.Dense(3)(x))
        >>> print(ke.prefix_tuning(encoder, 4))
        prefix: 1 weights; 91 parameters train, 12.73% of the model's 715

    Reference:
        Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation"; Liu et al.
        2022, "P-Tuning v2".
    """
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"`length` must be an int of at least 1. Received: {length!r}.")
    if scope not in ("deep", "shallow"):
        raise ValueError(f"`scope` must be 'deep' or 'shallow'. Received: {scope!r}.")
    check_model(model, "ke.prefix_tuning")
    selected = _select_attention(model, layers)
    if scope == "shallow":
        selected = selected[:1]
    check_call_wrapper([(a.path, a.layer) for a in selected], name, "ke.prefix_tuning")
    projections = {id(layer) for a in selected for layer in (a.key, a.value)}
    check_trainable([w for w in all_weights(model) if id(w.layer) in projections], name)
    freeze_base(model, train)
    wrappers = []
    for attention in selected:
        wrappers.append((attention.path, attention.layer, PrefixMask(attention, length, name)))
        # Each seed depends only on the place of the layer, so that all workers draw the same.
        for side, layer in enumerate((attention.key, attention.value)):
            vectors = PrefixVectors(length, [seed, attention.index, side], name)
            wrappers.append((f"{attention.path}/{layer.name}", layer, vectors))
    return attach_and_report(model, name, [attention.path for attention in selected], wrappers)


def _select_attention(model, layers):
    """The attention layers with weights that `layers` selects, all of them supported."""
    known, others = attention_layers(model)
    if layers is not None:
        paths = [weight.path for weight in select(model, layers, caller="ke.prefix_tuning")]

        def is_selected(path):
            return any(p.startswith(f"{path}/") for p in paths)

        known = [attention for attention in known if is_selected(attention.path)]
        others = {path: name for path, name in others.items() if is_selected(path)}
    if others:
        path, name = next(iter(others.items()))
        raise ValueError(
            "A prefix needs Keras' MultiHeadAttention, with its own computation and over one axis, "
            "or the attention of Hugging Face's BERT and similar encoders, without a cache. "
            f"Received: {name} at {path!r}. Use ke.lora or ke.adapters, or choose others with "
            "`layers=`."
        )
    if not known:
        raise ValueError(
            f"ke.prefix_tuning needs an attention layer. Received: {model.name!r} with "
            f"layers={layers!r}, which has none. Use ke.lora or ke.adapters."
        )
    return known
