"""`TokenClassifier`: a KerasHub backbone with a head that reads every token."""

from typing import Any

import keras
import keras_hub


@keras.saving.register_keras_serializable(package="keras_efficient")
class TokenClassifier(keras_hub.models.Task):
    """A KerasHub backbone and a dense layer that gives each token its logits.

    KerasHub has no such task. This one is made like its `BertTextClassifier`.

    Args:
        backbone: a `keras_hub.models.Backbone` of texts.
        num_classes: int, number of classes.
        preprocessor: None; the model takes token ids. Default: None.
        dropout: float, dropout rate before the head. Default: 0.1.

    Reference:
        `transformers.TFBertForTokenClassification`.
    """

    def __init__(self, backbone, num_classes, preprocessor=None, dropout=0.1, **kwargs):
        self.backbone, self.preprocessor = backbone, preprocessor
        policy = backbone.dtype_policy
        self.output_dropout = keras.layers.Dropout(dropout, dtype=policy, name="classifier_dropout")
        self.output_dense = keras.layers.Dense(num_classes, dtype=policy, name="logits")
        # Nothing reads the pooler, so it has no gradients.
        if (pooler := getattr(backbone, "pooled_dense", None)) is not None:
            pooler.trainable = False
        hidden: Any = backbone(backbone.input)
        if isinstance(hidden, dict):
            hidden = hidden["sequence_output"]
        outputs = self.output_dense(self.output_dropout(hidden))
        super().__init__(inputs=backbone.input, outputs=outputs, **kwargs)
        self.num_classes, self.dropout = num_classes, dropout

    def get_config(self):
        config = super().get_config()
        return config | {"num_classes": self.num_classes, "dropout": self.dropout}
