"""Batch normalisation for sequences: statistics over real tokens, of all replicas."""

import functools

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.layers._moments import masked_moments, masked_sums, moments_of_sums


def MaskedBatchNormalization(
    *,
    library="keras",
    momentum=0.99,
    epsilon=1e-3,
    center=True,
    scale=True,
    synchronized=True,
    name=None,
    dtype=None,
):
    """Normalise each feature by its mean and variance over the real tokens of the batch.

        y = γ · (x - mean) / √(variance + ε) + β

    with `masked_moments` of the batch in training, and their moving averages in inference. Padding
    counts for nothing; its positions are normalised like the others. The mask is the one that
    comes with the input (`Embedding(mask_zero=True)`), or the call's argument `mask`
    `[batch, length]`.

    - Computed in float32 for inputs of half precision.
    - A batch without a real token is normalised by the moving averages, and leaves them alone.
    - Several replicas: with `synchronized` their sums and counts are added, in one all-reduce, so
      they agree with one device and the whole batch. Else each normalises its own part; the
      moving averages are then the replicas' mean.
    - Under `ke.accumulate` (and in any loop of TensorFlow's) each slice is normalised by itself, on
      each replica by itself, and the moving averages move once per slice: ghost batch
      normalisation. Slices that follow each other cannot share statistics, and replicas may not
      talk inside a loop.

    `trainable = False` runs the layer in inference mode, as in Keras. The libraries' own
    BatchNormalization takes a mask as well; but a batch without a real token draws its averages to
    zero; Keras 3's forgets `synchronized` where there is a mask, and tf_keras' then fails in the
    loop of an accumulated step on several replicas.

    Args:
        library: "keras" or "tf_keras", or a model of it: whose layer to make.
        momentum: float in [0, 1), of the moving averages.
        epsilon: float > 0, added to the variance.
        center: bool, whether to learn β (weight `beta`).
        scale: bool, whether to learn γ (weight `gamma`).
        synchronized: bool, see above.
        name, dtype: as in every Keras layer.

    Returns:
        A layer of the library, for inputs `[batch, length, width]` (or any `[..., width]`).

    Raises:
        ValueError: a number out of its range; in a call, a mask of another rank.

    Example:
        >>> import numpy as np
        >>> layer = ke.layers.MaskedBatchNormalization(momentum=0.9)
        >>> x = np.array([[[1.0], [3.0], [99.0]]], "float32")
        >>> layer(x, mask=np.array([[1, 1, 0]]), training=True)[0, :2, 0].numpy().round(3).tolist()
        [-1.0, 1.0]

    Loading a saved model needs `custom_objects=ke.layers.custom_objects(library)`.

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


def custom_objects(library="keras") -> dict:
    """What `load_model(path, custom_objects=...)` needs to know of this package's layers.

    Args:
        library: "keras" or "tf_keras", or a model of it.

    Returns:
        A dict of class names and classes.

    Example:
        >>> sorted(ke.layers.custom_objects("keras"))
        ['keras_efficient>MaskedBatchNormalization']
    """
    cls = _layer_class(flavors.get(library).name)
    return {f"keras_efficient>{cls.__name__}": cls}


@functools.cache
def _layer_class(library):
    """The layer as a subclass of the library's `Layer`, registered there."""
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

        def build(self, input_shape):
            shape, dtype = (input_shape[-1],), _wide(self.variable_dtype)
            add = functools.partial(_add_weight, self, shape, dtype)
            self.gamma = add("gamma", "ones", trainable=True) if self.scale else None
            self.beta = add("beta", "zeros", trainable=True) if self.center else None
            self.moving_mean = add("moving_mean", "zeros")
            self.moving_variance = add("moving_variance", "ones")
            super().build(input_shape)

        def call(self, inputs, training=None, mask=None):
            moving = [tf.convert_to_tensor(self.moving_mean)]
            moving += [tf.convert_to_tensor(self.moving_variance)]
            x = tf.cast(inputs, moving[0].dtype)
            mean, variance = moving
            if training is not None and training is not False and self.trainable:
                mean, variance, count = _moments(x, mask, self.synchronized)
                known = count > 0
                if tf.is_tensor(training):
                    # The learning phase of tf_keras.
                    known = tf.logical_and(known, tf.cast(training, tf.bool))
                mean = tf.where(known, mean, moving[0])
                variance = tf.where(known, variance, moving[1])
                rate = 1.0 - self.momentum
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
            f"momentum={momentum!r}, epsilon={epsilon!r}. Keras' own defaults are 0.99 and 1e-3."
        )


def _add_weight(layer, shape, dtype, name, initializer, trainable=False):
    """A weight in full precision; an untrainable one each replica moves by itself.

    In Keras 3 `add_weight` cannot ask for the latter, `keras.Variable` can.
    """
    flavor = flavors.of(layer)
    if flavor.name == "tf_keras":
        kinds = {} if trainable else {"synchronization": tf.VariableSynchronization.ON_READ}
        kinds |= {} if trainable else {"aggregation": tf.VariableAggregation.MEAN}
        return layer.add_weight(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            trainable=trainable,
            experimental_autocast=False,
            **kinds,
        )
    if trainable:
        return layer.add_weight(
            shape=shape, dtype=dtype, initializer=initializer, name=name, autocast=False
        )
    return flavor.keras.Variable(
        flavor.keras.initializers.get(initializer),
        shape=shape,
        dtype=dtype,
        trainable=False,
        autocast=False,
        aggregation="mean",
        synchronization="on_read",
        name=name,
    )


def _wide(dtype):
    return "float64" if dtype == "float64" else "float32"


def _moments(x, mask, synchronized):
    """The moments of `x`, of all replicas together where that is wanted and possible."""
    context = tf.distribute.get_replica_context()
    if not synchronized or context is None or context.num_replicas_in_sync == 1 or _in_a_loop():
        return masked_moments(x, mask)
    sums = context.all_reduce(tf.distribute.ReduceOp.SUM, masked_sums(x, mask))
    return moments_of_sums(sums)


def _in_a_loop():
    """Whether a loop's body or a condition's branch is being traced.

    There MirroredStrategy cannot merge its replicas (tensorflow#27716), and nothing makes them
    take the same number of turns.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if type(graph).__name__ in ("WhileBodyFuncGraph", "CondBranchFuncGraph"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False
