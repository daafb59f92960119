"""Keep the numerically delicate layers of a mixed-precision model in float32."""

from keras_efficient import flavor as flavors


def keep_float32(model, *heads):
    """Let softmax layers and `heads` of `model` compute in float32 under a mixed policy.

    Covers softmax that is a layer (in both libraries' MultiHeadAttention). Hugging Face's models
    call TensorFlow's softmax operation instead, whose oneDNN, XLA and GPU kernels compute in
    float32 whatever the dtype of their input. LayerNormalization does so in both libraries.

    Args:
        model: a built Keras 3 or tf_keras model.
        heads: layers whose outputs feed the loss.

    Returns:
        The model.
    """
    flavor = flavors.of(model)
    softmax = [
        layer for layer in model._flatten_layers() if isinstance(layer, flavor.keras.layers.Softmax)
    ]
    for layer in (*softmax, *heads):
        flavor.set_policy(layer, "float32")
    return model
