"""Batch normalization for sequences, with statistics of the unmasked tokens of all replicas."""

import functools
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor._typing import Layer
from keras_efficient.layers._moments import masked_moments, masked_sums, moments_of_sums


def MaskedBatchNormalization(
    *,
    library: Any = "keras",
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
    synchronized: bool = True,
    name: str | None = None,
    dtype: Any = None,
) -> Layer:
    """Normalize each feature by its mean and variance over the unmasked tokens of the batch.

        y = γ · (x - mean) / √(variance + ε) + β

    In training, `mean` and `variance` are the `masked_moments` of the batch; in inference, their
    moving averages, in which the initial values 0 and 1 have no share. Padding does not enter the
    statistics; its positions are normalized like the others. The mask is the one attached to the
    input (`Embedding(mask_zero=True)`), or the call argument `mask` of shape `[batch, length]`.

    - Inputs of half precision are normalized in float32.
    - A batch without unmasked tokens is normalized by the moving averages and does not change
      them.
    - On several replicas, `synchronized=True` adds their sums and counts in one all-reduce, so
      that the result equals that of one device with the whole batch. With `synchronized=False`
      each replica normalizes its own part, and the moving averages are the replicas' mean.
    - Under `ke.accumulate`, and in any TensorFlow loop, each microbatch is normalized separately
      on each replica, and the moving averages are updated once per microbatch: ghost batch
      normalization. Later microbatches are not known yet, and replicas cannot communicate inside
      a loop.

    `trainable = False` runs the layer in inference mode, as in Keras. The libraries' own
    BatchNormalization accepts a mask as well, but its averages keep a share of their initial
    values, a batch without unmasked tokens pulls them towards zero, Keras 3's ignores
    `synchronized` if there is a mask, and tf_keras' fails in the loop of an accumulated step on
    several replicas.

    Loading a saved model needs `custom_objects=ke.layers.custom_objects(library)`.

    Args:
        library: "keras" or "tf_keras", or a model of the library to make the layer for. Default:
            "keras".
        momentum: Decay of the moving averages, in [0, 1). They lag behind the weights by about
            1 / (1 - momentum) updates; `estimate_batch_statistics` replaces them. Default: 0.99.
        epsilon: Positive number added to the variance. Default: 1e-3.
        center: Whether to learn β, the weight `beta`. Default: True.
        scale: Whether to learn γ, the weight `gamma`. Default: True.
        synchronized: Whether replicas share statistics. Default: True.
        name: Name of the layer. Default: None, chosen by Keras.
        dtype: Dtype or dtype policy of the layer. Default: None, the global policy.

    Returns:
        A layer of the library for inputs of shape `[batch, length, width]`, or any `[..., width]`.

    Raises:
        ValueError: `momentum` or `epsilon` is out of range, or, in a call, the mask has the wrong
            rank.

    Examples:
        >>> import numpy as np
        >>> layer = ke.layers.MaskedBatchNormalization(momentum=0.9)
        >>> x = np.array([[[1.0], [3.0], [99.0]]], "float32")
        >>> layer(x, mask=np.array([[1, 1, 0]]), training=True)[0, :2, 0].numpy().round(3).tolist()
        [-1.0, 1.0]

    Reference:
        Ioffe & Szegedy 2015, "Batch Normalization"; Hoffer et al. 2017, "Train longer, generalize
        better" (ghost batches); Shen et al. 2020, "PowerNorm", and Wang et al. 2022,
        "Understanding the Failure of Batch Normalization for Transformers in NLP", on why
        LayerNormalization is the usual choice; Yao et al. 2021, "Leveraging Batch Normalization
        for Vision Transformers".
    """
    return _layer_class(flavors.get(library).name)(
        momentum=momentum,
        epsilon=epsilon,
        center=center,
        scale=scale,
        synchronized=synchronized,
        name=name,
        dtype=dtype,
    )


def custom_objects(library: Any = "keras") -> dict[str, type]:
    """Return the `custom_objects` that loading a model with this package's layers needs.

    Args:
        library: "keras" or "tf_keras", or a model of the library. Default: "keras".

    Returns:
        `{registered name: class}`.

    Examples:
        >>> sorted(ke.layers.custom_objects("keras"))
        ['keras_efficient>MaskedBatchNormalization']

    Reference:
        `keras.models.load_model(path, custom_objects=...)`.
    """
    cls = _layer_class(flavors.get(library).name)
    return {f"keras_efficient>{cls.__name__}": cls}


@functools.cache
def _layer_class(library):
    """Return the layer as a subclass of the library's `Layer`, registered with the library."""
    flavor = flavors.get(library)
    keras = flavor.keras

    class MaskedBatchNormalization(keras.layers.Layer):
        def __init__(
            self, momentum=0.99, epsilon=1e-3, center=True, scale=True, synchronized=True, **kwargs
        ):
            super().__init__(**kwargs)
            _check(momentum, epsilon)
            self.momentum, self.epsilon = float(momentum), float(epsilon)
            self.center, self.scale, self.synchronized = center, scale, synchronized
            self.supports_masking = True
            #: What `estimate_batch_statistics` measures this layer with, while it does.
            self.observed: Any = None

        def build(self, input_shape):
            shape, dtype = (input_shape[-1],), _statistics_dtype(self.variable_dtype)

            def add(name, initializer, trainable):
                return flavor.add_weight(self, name, shape, dtype, initializer, trainable=trainable)

            self.gamma: Any = add("gamma", "ones", True) if self.scale else None
            self.beta: Any = add("beta", "zeros", True) if self.center else None
            self.moving_mean = add("moving_mean", "zeros", False)
            self.moving_variance = add("moving_variance", "ones", False)
            #: Sum of the weights of the updates so far, 1 - momentum ** updates.
            self.moving_weight = flavor.add_weight(
                self, "moving_weight", (), dtype, "zeros", trainable=False
            )
            super().build(input_shape)

        def call(self, inputs, training=None, mask=None):
            moving = [tf.convert_to_tensor(self.moving_mean)]
            moving += [tf.convert_to_tensor(self.moving_variance)]
            x = tf.cast(inputs, moving[0].dtype)
            mean, variance = moving
            if self.observed is not None:
                mean, variance, count = self.observed(x, mask)
                mean, variance = (
                    tf.where(count > 0, own, average)
                    for own, average in zip((mean, variance), moving, strict=True)
                )
            elif training is not None and training is not False and self.trainable:
                mean, variance, count = _moments(x, mask, self.synchronized)
                known = count > 0
                if tf.is_tensor(training):
                    # The learning phase of tf_keras is a tensor.
                    known = tf.logical_and(known, tf.cast(training, tf.bool))
                mean = tf.where(known, mean, moving[0])
                variance = tf.where(known, variance, moving[1])
                rate = 1.0 - self.momentum
                weight = tf.convert_to_tensor(self.moving_weight)
                weight += tf.where(known, rate * (1.0 - weight), 0.0)
                self.moving_weight.assign(weight)
                # Without the weight of the initial values 0 and 1, of which 100 updates leave 37 %.
                rate = tf.math.divide_no_nan(tf.cast(rate, weight.dtype), weight)
                self.moving_mean.assign(moving[0] + rate * (mean - moving[0]))
                self.moving_variance.assign(moving[1] + rate * (variance - moving[1]))
            factor = tf.math.rsqrt(variance + self.epsilon)
            if self.scale:
                factor *= tf.cast(self.gamma, x.dtype)
            outputs = (x - mean) * factor
            if self.center:
                outputs += tf.cast(self.beta, x.dtype)
            return tf.cast(outputs, inputs.dtype)

        def compute_output_shape(self, input_shape):
            return input_shape

        def get_config(self):
            names = ("momentum", "epsilon", "center", "scale", "synchronized")
            return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    register = keras.utils.register_keras_serializable(package="keras_efficient")
    return register(MaskedBatchNormalization)


def _check(momentum, epsilon):
    if not 0 <= momentum < 1 or not epsilon > 0:
        raise ValueError(
            "`momentum` must be in [0, 1) and `epsilon` greater than 0. Received: "
            f"momentum={momentum!r}, epsilon={epsilon!r}. Keras' defaults are 0.99 and 1e-3."
        )


def _statistics_dtype(dtype):
    return "float64" if dtype == "float64" else "float32"


def _moments(x, mask, synchronized):
    """Return the moments of `x`, of all replicas together if `synchronized` and possible."""
    context = tf.distribute.get_replica_context()
    if (
        not synchronized
        or context is None
        or context.num_replicas_in_sync == 1
        or _inside_control_flow()
    ):
        return masked_moments(x, mask)
    sums = context.all_reduce(tf.distribute.ReduceOp.SUM, masked_sums(x, mask))
    return moments_of_sums(sums)


def _inside_control_flow():
    """Whether the body of a loop or the branch of a condition is being traced.

    MirroredStrategy cannot merge its replicas there (tensorflow#27716), and the replicas may take
    different numbers of iterations.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if type(graph).__name__ in ("WhileBodyFuncGraph", "CondBranchFuncGraph"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False
