"""Prefix tuning: train keys and values in front of those of a model's attention."""

import inspect

import numpy as np
import tensorflow as tf

from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._architecture import attention_layers
from keras_efficient.parametrize._checks import check_call_wrapper, check_model, check_trainable
from keras_efficient.parametrize._parametrized_layer import CallWrapper, original_class
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._weights import all_weights
from keras_efficient.peft._call_wrappers import attach_and_report
from keras_efficient.peft._report import TuningReport, freeze_base


class PrefixVectors(CallWrapper):
    """Puts trainable vectors in front of the sequence that a projection gives.

    Attributes:
        vectors: `tf.Variable` [length, *outputs], from N(0, 0.02²) at first.
    """

    def __init__(self, length, seed, name):
        self.length, self.seed, self.name = length, seed, name

    def build(self):
        # (A kernel [inputs, outputs] or [inputs, heads, size].)
        shape = (self.length, *self.layer.kernel.shape[1:])
        rng = np.random.default_rng(self.seed)
        initial = rng.normal(0, 0.02, shape).astype("float32")
        self.vectors = self.variable("vectors", shape, initial, trainable=True)

    def wrap_call(self, call, *args, **kwargs):
        given = call(*args, **kwargs)
        vectors = tf.cast(self.vectors, given.dtype)
        batch = tf.concat([tf.shape(given)[:1], tf.shape(vectors)], 0)
        return tf.concat([tf.broadcast_to(vectors, batch), given], 1)

    def describe(self):
        return f"{self.name} of {self.length}"


class PrefixMask(CallWrapper):
    """Lets an attention layer's mask show what `Vectors` put in front of its keys and values."""

    def __init__(self, attention, length, name):
        self.attention, self.length, self.name = attention, length, name

    def wrap_call(self, call, *args, **kwargs):
        layer = self.layer
        given = inspect.signature(original_class(layer).call).bind(layer, *args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        del given["self"]
        if self.attention.additive:
            mask = given.get("attention_mask")
            if mask is not None:
                given["attention_mask"] = self._longer(mask, 0, tf.shape(mask)[-1])
            return call(**given)
        length = tf.shape(given["value"])[1]
        if given.get("use_causal_mask") and given.get("attention_mask") is None:
            # Keras 3 would mask within its kernel, which counts the prefix as positions.
            shape = [1, tf.shape(given["query"])[1], length]
            given["attention_mask"] = tf.ones(shape, tf.bool)
        plain = layer._compute_attention_mask

        @tf.autograph.experimental.do_not_convert
        def compute_attention_mask(*args, **kwargs):
            mask = plain(*args, **kwargs)
            return mask if mask is None else self._longer(mask, 1, length)

        with patched(layer, _compute_attention_mask=compute_attention_mask):
            return call(**given)

    def _longer(self, mask, seen, length):
        """A mask [..., keys] with the prefix in front of its last axis."""
        mask = tf.convert_to_tensor(mask)
        # (The last axis may be 1, for all keys.)
        mask = tf.broadcast_to(mask, tf.concat([tf.shape(mask)[:-1], [length]], 0))
        front = tf.concat([tf.shape(mask)[:-1], [self.length]], 0)
        return tf.concat([tf.fill(front, tf.cast(seen, mask.dtype)), mask], -1)

    def describe(self):
        return f"{self.name} of {self.length}"


def prefix_tuning(
    model, length=16, *, train=None, name="prefix", layers=None, seed=0, scope="deep"
) -> TuningReport:
    """Freeze a model and train keys and values in front of those of its attention layers.

        softmax(Q · [P_K; K]ᵀ / √d) · [P_V; V]

    with `length` rows of P_K and P_V, the same for every example, which a mask never hides. They
    are trained as they are, without Li & Liang's network that makes them in training (P-tuning v2
    finds it of little use); they start from N(0, 0.02²), so the model does not compute just what it
    did: the zero-ish keys take a share of the attention at once.

    For Keras' and tf_keras' MultiHeadAttention (KerasHub's encoders, Model Garden's) and Hugging
    Face's BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, LayoutLM and ALBERT. A decoder with a cache of
    keys and values is refused. Acts from the next `fit` on, before or after `compile`.

    A prefix is no function of a weight: `ke.merge` and `model.save` to a `.keras` file refuse.
    `model.save_weights`, `ke.save_adapters` and `ke.export` work; `remove()` of what this returns
    takes it off.

    Args:
        model: a built Keras 3 or tf_keras model.
        length: int >= 1, vectors per attention layer. Default 16.
        train: what else trains; as in `ke.lora`. Default: the model's head.
        name: str, of this prefix. Default "prefix".
        layers: which attention layers, by their weights; see `parametrize.select`. Default: all.
        seed: int, of the initial values. Default 0.
        scope: "deep" (default): every chosen attention layer gets a prefix; "shallow": the first
            only. That is as near as this comes to prompt tuning (Lester et al. 2021), whose
            vectors stand before the embeddings: they would lengthen the sequence in all of the
            model's layers, and in its pooling and outputs, which cannot be done to any model from
            outside.

    Returns:
        A `Tuned`, to print, with a method `remove()`.

    Raises:
        ValueError: an argument out of range, no attention layer that takes a prefix among the
            chosen, one that cannot, or a prefix of this name exists.

    Example:
        >>> import keras
        >>> attention = keras.layers.MultiHeadAttention(2, 4)
        >>> ids = keras.Input((None,), dtype="int32")
        >>> x = keras.layers.Embedding(50, 8)(ids)
        >>> x = keras.layers.GlobalAveragePooling1D()(attention(x, x))
        >>> encoder = keras.Model(ids, keras.layers.Dense(3)(x))
        >>> print(ke.prefix_tuning(encoder, 4))
        prefix: 1 weights; 91 parameters train, 12.73% of the model's 715

    Reference:
        Li & Liang 2021, "Prefix-Tuning"; Liu et al. 2022, "P-Tuning v2".
    """
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"`length` must be an int of at least 1. Received: {length!r}.")
    if scope not in ("deep", "shallow"):
        raise ValueError(f"`scope` must be 'deep' or 'shallow'. Received: {scope!r}.")
    check_model(model, "ke.prefix_tuning")
    chosen = _chosen(model, layers)
    if scope == "shallow":
        chosen = chosen[:1]
    check_call_wrapper([(a.path, a.layer) for a in chosen], name, "ke.prefix_tuning")
    projections = {id(layer) for a in chosen for layer in (a.key, a.value)}
    check_trainable([w for w in all_weights(model) if id(w.layer) in projections], name)
    freeze_base(model, train)
    pairs = []
    for attention in chosen:
        pairs.append((attention.path, attention.layer, PrefixMask(attention, length, name)))
        # The same on every worker, in every process, and whatever else is chosen.
        for side, layer in enumerate((attention.key, attention.value)):
            vectors = PrefixVectors(length, [seed, attention.index, side], name)
            pairs.append((f"{attention.path}/{layer.name}", layer, vectors))
    return attach_and_report(model, name, [attention.path for attention in chosen], pairs)


def _chosen(model, layers):
    known, others = attention_layers(model)
    if layers is not None:
        paths = [weight.path for weight in select(model, layers, caller="ke.prefix_tuning")]
        among = lambda path: any(p.startswith(f"{path}/") for p in paths)  # noqa: E731
        known = [attention for attention in known if among(attention.path)]
        others = {path: kind for path, kind in others.items() if among(path)}
    if others:
        path, kind = next(iter(others.items()))
        raise ValueError(
            "A prefix needs attention of Keras' MultiHeadAttention (not one that computes in its "
            "own way) or of Hugging Face's BERT and its like, without a cache. Received: "
            f"{kind} at {path!r}. Use ke.lora or ke.adapters, or choose others with `layers=`."
        )
    if not known:
        raise ValueError(
            f"ke.prefix_tuning needs an attention layer. Received: {model.name!r} with layers={layers!r}, "
            "which has none. Use ke.lora or ke.adapters."
        )
    return known
