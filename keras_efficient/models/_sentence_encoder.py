"""`SentenceEncoder`: a KerasHub backbone whose output is one embedding per text."""

from typing import Any

import keras
import keras_hub

from keras_efficient.models._mean_pooling import mean_pooled


@keras.saving.register_keras_serializable(package="keras_efficient")
class MeanPooling(keras.layers.Layer):
    """Mean of the hidden states of real tokens, of unit length; see `mean_pooled`."""

    def call(self, hidden, padding_mask):
        return mean_pooled(hidden, padding_mask)


@keras.saving.register_keras_serializable(package="keras_efficient")
class SentenceEncoder(keras_hub.models.Task):
    """A KerasHub backbone whose hidden states are averaged to one embedding per text.

    KerasHub has no such task. Its output is `[batch, width]`, rows of unit length.

    Args:
        backbone: a `keras_hub.models.Backbone` of texts.
        preprocessor: None; the model takes token ids. Default: None.

    Reference:
        Reimers & Gurevych 2019, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks".
    """

    def __init__(self, backbone, preprocessor=None, **kwargs):
        self.backbone, self.preprocessor = backbone, preprocessor
        self.pooling = MeanPooling(dtype="float32", name="logits")
        # Nothing reads the pooler, so it has no gradients.
        if (pooler := getattr(backbone, "pooled_dense", None)) is not None:
            pooler.trainable = False
        inputs: Any = backbone.input
        hidden: Any = backbone(inputs)
        if isinstance(hidden, dict):
            hidden = hidden["sequence_output"]
        outputs = self.pooling(hidden, inputs["padding_mask"])
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.num_classes = outputs.shape[-1]
