"""`Seq2Seq`: a text to generate for each text, as in translation."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._check_text import check_text
from keras_efficient.data._records import Records
from keras_efficient.data._target_texts import TargetTexts
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Model, Tensor
from keras_efficient.metrics._generation_report import GenerationReport, generation_report
from keras_efficient.metrics._labelled_batches import labelled_batches
from keras_efficient.tasks._task import Task
from keras_efficient.tasks._text_generation import TextGeneration


class Seq2Seq(TextGeneration):
    """Sequence to sequence: for each text another one is generated.

    The loss is the cross-entropy of the next token, averaged over the tokens of the targets, whose
    previous tokens the decoder reads. The report of an evaluation, a `ke.metrics.GenerationReport`,
    is of generated texts; that of `report` is the perplexity of the targets. The signature of
    strings answers with "generated_text", string `[batch]`, and "log_probability", float32
    `[batch]`, the sum over the generated tokens.

    Args:
        texts: Number of texts per example, 1. Default: 1.
        max_tokens: Largest number of tokens to generate. Default: 64.
        strategy: How to choose them: `ke.generation.Greedy()`, `Sample(...)` or `Beam(...)`.
            Default: None, which is `Greedy()`.

    Raises:
        InputError: `texts` is not 1, or `max_tokens` is not a number of tokens.

    Examples:
        >>> task = ke.tasks.Seq2Seq(strategy=ke.generation.Beam(4))
        >>> records = ke.data.Records.of(["cat"], ["K AE1 T"], encode=task.encode)
        >>> records.labels.texts
        ('K AE1 T',)

    Reference:
        Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks".
    """

    name = "seq2seq"
    head = "decoder"
    labelled = True

    # --- label format ------------------------------------------------------------------------

    def read(self, source: Any, **columns: Any) -> Records:
        """Read data with a column of texts and one of targets, as `ke.data.read_records` does."""
        return Task.read(self, source, **columns)

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[Any, tuple[str, ...]]:
        """Return `TargetTexts`, and no names."""
        for i, value in enumerate(values):
            check_text(value, f"target, {where(i)}")
        return TargetTexts(values), ()

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require targets that differ."""
        if not isinstance(train.labels, TargetTexts) or len(set(train.labels.texts)) < 2:
            raise InputError(
                "Sequence to sequence learns to generate texts, at least two different ones. "
                f"Received: {train!r:.200}. Name the column of the targets, and read the data with "
                "the task's `read`."
            )

    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return the number of targets, and how good the most frequent one is."""
        targets = train.labels.texts
        frequent = Counter(targets).most_common(1)[0][0]
        right = np.mean([text == frequent for text in validation.labels.texts])
        return (
            f"{len(set(targets)):,} different texts to generate",
            f"always answering {frequent!r:.40} is right for {right:.2%} of the texts",
        )

    # --- evaluation --------------------------------------------------------------------------

    def evaluate(
        self,
        model: Model,
        data: Iterable[Any],
        label_names: Sequence[str] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
    ) -> GenerationReport:
        """Generate texts for finite labelled batches, and compare them with the targets.

        Args:
            model: the model.
            data: batches, as `ke.data.text` makes them.
            label_names: None.
            tokenizer: the model's `ke.data.Tokenizer`.

        Raises:
            InputError: there is no tokenizer.
        """
        if tokenizer is None:
            raise InputError(
                "Generated texts are evaluated as strings. Received: no tokenizer. Give "
                "`tokenizer`, as ke.models.load returns it."
            )
        import tensorflow as tf

        from keras_efficient.data._detokenizer import Detokenizer

        detokenize = Detokenizer(tokenizer)
        answer = tf.function(
            lambda features: self.answer(model, features, tokenizer)["generated_text"],
            reduce_retracing=True,
            autograph=False,
        )
        wanted, found = [], []
        names = [tokenizer.inputs[role] for role in ("ids", "mask")]
        for features, labels, _ in labelled_batches(data, "data", self.batch_labels):
            ids = np.where(labels == IGNORED, tokenizer.pad_id, labels)
            wanted += [text.decode() for text in detokenize(ids).numpy()]
            read = {name: tf.convert_to_tensor(features[name]) for name in names}
            found += [text.decode("utf-8", "replace") for text in answer(read).numpy()]
        return generation_report(wanted, found)

    # --- signature ---------------------------------------------------------------------------

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Require tokens between which targets are generated."""
        super().check_tokenizer(tokenizer)
        assert tokenizer.target_ends

    def answer(
        self, model: Model, features: Mapping[str, Tensor], tokenizer: Any
    ) -> dict[str, Tensor]:
        """Return what is generated for texts."""
        import tensorflow as tf

        from keras_efficient.generation._decoder import decoder_of

        ids, mask = (features[tokenizer.inputs[role]] for role in ("ids", "mask"))
        begin, end = tokenizer.target_ends
        decoder = decoder_of(model)
        state = decoder.start(ids, mask, self.max_tokens + 1)
        first = tf.fill([tf.shape(ids)[0], 1], begin)
        return self._generate(decoder.step, state, first, tokenizer, end)
