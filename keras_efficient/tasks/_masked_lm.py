"""`MaskedLM`: predict masked tokens, to adapt an encoder to texts without labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_efficient.data._masking import Masking
from keras_efficient.flavor._typing import Dataset, Tensor
from keras_efficient.tasks._language_model import LanguageModel

#: Number of words that the signature of strings answers with.
BEST = 5


class MaskedLM(LanguageModel):
    """Masked language modelling: tokens of a text are hidden, and predicted from the others.

    It needs no labels, and adapts the encoder to the texts of a domain. The trained model is a
    start for the other tasks: `ke.models.load(folder, task="classification", num_labels=2)`. The
    head transforms the hidden states at the masked positions, and its outputs are tied to the
    table of tokens; the product with the vocabulary is computed for those positions alone. The
    loss is the cross-entropy, averaged over the masked tokens. The report is a
    `ke.metrics.LanguageModelReport`.

    The signature of strings answers for each mask token of a text, [MASK] for BERT, with the five
    best words: "words", string `[batch, masked, 5]`, and "probabilities", float32 likewise; texts
    with fewer mask tokens than others are padded with "" and 0.

    Args:
        texts: Number of texts per example, 1. Default: 1.
        masking: Which tokens are masked, a `ke.data.Masking`. Default: None, 15% of the tokens,
            selected anew in each epoch; for an evaluation the same ones each time.

    Raises:
        InputError: `texts` is not 1.

    Examples:
        >>> task = ke.tasks.MaskedLM(masking=ke.data.Masking(mask_selection_rate=0.3))
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2", task=task)
        >>> records = ke.data.Records.of(["a fine film", "a dull plot"])
        >>> batches = task.batches(records, tokenizer, batch_size=2)
        >>> features, labels = next(iter(batches))
        >>> model(features).shape[:2] == labels.shape
        True

    Reference:
        Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers"; Gururangan et
        al. 2020, "Don't Stop Pretraining"; `transformers.TFAutoModelForMaskedLM`.
    """

    name = "masked_lm"
    serves = ("words", "probabilities")
    head = "masked_token"

    def __init__(self, texts: int = 1, masking: Masking | None = None):
        super().__init__(texts)
        self.masking = masking or Masking()

    def batches(
        self, records: Any, tokenizer: Any, *, training: bool = True, **options: Any
    ) -> Dataset:
        """Return batches of masked texts; the masks of an evaluation are always the same."""
        masking = self.masking if training else dataclasses.replace(self.masking, static=True)
        return super().batches(records, tokenizer, training=training, masking=masking, **options)

    def serve(
        self,
        logits: Tensor,
        label_names: Sequence[str] | None,
        tokens: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return "words" and "probabilities" of the best words for each mask token."""
        import tensorflow as tf

        assert tokens is not None
        best = tf.math.top_k(tf.nn.softmax(logits), min(BEST, logits.shape[-1]))
        there = tf.range(tf.shape(logits)[1]) < tokens["masked"][:, None]
        with tf.device("CPU:0"):
            words = tf.gather(tokens["vocabulary"], best.indices)
            words = tf.where(there[..., None], words, "")
        return {"words": words, "probabilities": tf.where(there[..., None], best.values, 0.0)}

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "masked" of each text: a list of the best words of each of its mask tokens.

        A word is a dict of "word" and "probability"; pieces of words have the marks of the
        tokenizer, as "##ly".
        """
        columns = zip(outputs["words"], outputs["probabilities"], strict=True)
        return [{"masked": _decoded(words, shares)} for words, shares in columns]


def _decoded(words, probabilities):
    found = []
    for best, shares in zip(words, probabilities, strict=True):
        if not any(best):
            continue
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("not a probability for each word")
        pairs = zip(best, shares, strict=True)
        found.append([{"word": word, "probability": share} for word, share in pairs])
    return found
