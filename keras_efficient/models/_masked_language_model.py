"""`MaskedLanguageModel`: a KerasHub backbone that predicts the tokens at masked positions."""

from typing import Any

import keras
import keras_hub

from keras_efficient._errors import InputError


@keras.saving.register_keras_serializable(package="keras_efficient")
class MaskedLanguageModel(keras_hub.models.Task):
    """A KerasHub backbone and KerasHub's `MaskedLMHead`, which reads the masked positions only.

    KerasHub's `BertMaskedLM` and its relatives are the same for single backbones, with another
    epsilon in the head's norm than the checkpoints of BERT. The product with the vocabulary, tied
    to the table of tokens, is computed for `mask_positions` alone.

    Args:
        backbone: a `keras_hub.models.Backbone` of texts with a `token_embedding`.
        preprocessor: None; the model takes token ids. Default: None.
        layer_norm_epsilon: float, epsilon of the head's norm. Default: 1e-12.

    Raises:
        InputError: the backbone has no table of tokens that could be tied.

    Reference:
        `keras_hub.models.BertMaskedLM`.
    """

    def __init__(self, backbone, preprocessor=None, layer_norm_epsilon=1e-12, **kwargs):
        if getattr(backbone, "token_embedding", None) is None:
            raise InputError(
                "Masked language modelling needs a table of tokens, to which its head is tied. "
                f"Received: {type(backbone).__name__} without `token_embedding`. Take another "
                "architecture, such as BERT."
            )
        self.backbone, self.preprocessor = backbone, preprocessor
        initializer: Any = keras.initializers.TruncatedNormal(stddev=0.02)
        self.masked_lm_head = keras_hub.layers.MaskedLMHead(
            token_embedding=backbone.token_embedding,
            intermediate_activation="gelu",
            layer_norm_epsilon=layer_norm_epsilon,
            kernel_initializer=initializer,
            dtype=backbone.dtype_policy,
            name="masked_lm_head",
        )
        # Nothing reads the pooler, so it has no gradients.
        if (pooler := getattr(backbone, "pooled_dense", None)) is not None:
            pooler.trainable = False
        positions = keras.Input(shape=(None,), dtype="int32", name="mask_positions")
        hidden: Any = backbone(backbone.input)
        if isinstance(hidden, dict):
            hidden = hidden["sequence_output"]
        outputs = self.masked_lm_head(hidden, positions)
        inputs = {**backbone.input, "mask_positions": positions}
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.num_classes = backbone.token_embedding.input_dim

    def get_config(self):
        return super().get_config() | {"layer_norm_epsilon": self.layer_norm_epsilon}
