"""Keep the numerically sensitive layers of a mixed-precision model in float32."""

from keras_efficient import flavor as flavors
from keras_efficient.flavor._typing import Layer, Model


def keep_float32(model: Model, *heads: Layer) -> Model:
    """Set the dtype policy of softmax layers and `heads` to float32 in a mixed-precision model.

    This covers softmax layers, such as those inside both libraries' MultiHeadAttention. Hugging
    Face's models call TensorFlow's softmax operation instead, which computes in float32 for any
    input dtype with XLA, on GPUs and, through oneDNN, on CPUs with AVX-512. LayerNormalization
    computes in float32 in both libraries.

    Args:
        model: A built Keras 3 or tf_keras model.
        *heads: Layers whose outputs enter the loss.

    Returns:
        The model.

    Examples:
        >>> ke.dtype_policies.keep_float32(model, model.layers[-1]) is model
        True

    Reference:
        Micikevicius et al. 2018, "Mixed Precision Training", section 3.3.
    """
    flavor = flavors.of(model)
    softmax = [
        layer for layer in model._flatten_layers() if isinstance(layer, flavor.keras.layers.Softmax)
    ]
    for layer in (*softmax, *heads):
        flavor.set_policy(layer, "float32")
    return model
