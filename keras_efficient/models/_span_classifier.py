"""`SpanClassifier`: a KerasHub backbone with a head that finds an answer in a context."""

from typing import Any

import keras
import keras_hub
import numpy as np

from keras_efficient.models._span_logits import span_logits


@keras.saving.register_keras_serializable(package="keras_efficient")
class SpanMask(keras.layers.Layer):
    """Logits of spans, `[batch, 2, tokens]`, masked outside of the context; see `span_logits`."""

    def __init__(self, separator, **kwargs):
        super().__init__(**kwargs)
        self.separator = separator

    def call(self, logits, token_ids, padding_mask):
        return span_logits(logits, token_ids, padding_mask, self.separator)

    def get_config(self):
        return super().get_config() | {"separator": self.separator}


@keras.saving.register_keras_serializable(package="keras_efficient")
class SpanClassifier(keras_hub.models.Task):
    """A KerasHub backbone and a dense layer that says where an answer begins and ends.

    KerasHub has no such task. Its output is `[batch, 2, tokens]`, the logits of the first and of
    the last token of the answer.

    Args:
        backbone: a `keras_hub.models.Backbone` of texts.
        separator: int, id of the special token between question and context.
        preprocessor: None; the model takes token ids. Default: None.

    Reference:
        `transformers.TFBertForQuestionAnswering`.
    """

    def __init__(self, backbone, separator, preprocessor=None, **kwargs):
        self.backbone, self.preprocessor = backbone, preprocessor
        policy = backbone.dtype_policy
        self.output_dense = keras.layers.Dense(2, dtype=policy, name="qa_outputs")
        self.output_mask = SpanMask(separator, dtype="float32", name="logits")
        # Nothing reads the pooler, so it has no gradients.
        if (pooler := getattr(backbone, "pooled_dense", None)) is not None:
            pooler.trainable = False
        inputs: Any = backbone.input
        hidden: Any = backbone(inputs)
        if isinstance(hidden, dict):
            hidden = hidden["sequence_output"]
        outputs = self.output_mask(
            self.output_dense(hidden), inputs["token_ids"], inputs["padding_mask"]
        )
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.separator, self.num_classes = separator, 2

    def renumber_tokens(self, ids):
        """Adapt to a vocabulary of fewer tokens; `ke.shrink` calls this.

        Args:
            ids: int array of the old ids of the tokens that were kept, by their new ids.

        Raises:
            ValueError: the separator is not among them.
        """
        places = np.flatnonzero(np.asarray(ids) == self.separator)
        if not places.size:
            raise ValueError(
                "`vocabulary` must contain the token between question and context. Received: ids "
                f"for {self.name!r} without {self.separator}. Get the ids from "
                "ke.data.trim_vocabulary."
            )
        self.separator = self.output_mask.separator = int(places[0])

    def get_config(self):
        return super().get_config() | {"separator": self.separator}
