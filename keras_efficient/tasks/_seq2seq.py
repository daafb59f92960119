"""`Seq2Seq`: a text to generate for each text, as in translation."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._check_text import check_text
from keras_efficient.data._detokenizer import Detokenizer
from keras_efficient.data._records import Records
from keras_efficient.data._target_texts import TargetTexts
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Model, Tensor
from keras_efficient.generation._decoder import decoder_of
from keras_efficient.generation._generate import generate
from keras_efficient.generation._strategies import Greedy, Strategy
from keras_efficient.metrics._generation_report import GenerationReport, generation_report
from keras_efficient.metrics._labelled_batches import labelled_batches
from keras_efficient.tasks._language_model import LanguageModel
from keras_efficient.tasks._task import Task


class Seq2Seq(LanguageModel):
    """Sequence to sequence: for each text another one is generated.

    The loss is the cross-entropy of the next token, averaged over the tokens of the targets, whose
    previous tokens the decoder reads. The report of an evaluation, a `ke.metrics.GenerationReport`,
    is of generated texts; that of `report` is the perplexity of the targets. The signature of
    strings answers with "generated_text", string `[batch]`, and "scores", float32 `[batch]`, the
    sums of the log-probabilities of the generated tokens.

    Args:
        texts: Number of texts per example, 1. Default: 1.
        max_tokens: Largest number of tokens to generate. Default: 64.
        strategy: How to choose them: `ke.generation.Greedy()`, `Sample(...)` or `Beam(...)`.
            Default: `Greedy()`.

    Raises:
        InputError: `texts` is not 1.

    Examples:
        >>> task = ke.tasks.Seq2Seq(strategy=ke.generation.Beam(4))
        >>> records = ke.data.Records.of(["cat"], ["K AE1 T"], encode=task.encode)
        >>> records.labels.texts
        ('K AE1 T',)

    Reference:
        Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks".
    """

    name = "seq2seq"
    serves = ("generated_text", "scores")
    head = "decoder"
    labelled = True
    generates = True
    pretrains = False

    def __init__(
        self,
        texts: int = 1,
        *,
        max_tokens: int = 64,
        strategy: Strategy = Greedy(),  # noqa: B008 - immutable
    ):
        super().__init__(texts)
        self.max_tokens, self.strategy = max_tokens, strategy

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

    # --- signature and decoding --------------------------------------------------------------

    def answer(
        self, model: Model, features: Mapping[str, Tensor], tokenizer: Tokenizer
    ) -> dict[str, Tensor]:
        """Return "generated_text" and "scores" of texts, in TensorFlow operations.

        Args:
            model: a sequence-to-sequence model.
            features: tensors by the names of its inputs: the ids and the mask of the texts.
            tokenizer: the model's tokenizer.
        """
        import tensorflow as tf

        ids, mask = (features[tokenizer.inputs[role]] for role in ("ids", "mask"))
        begin, end = tokenizer.ends
        decoder = decoder_of(model)
        state = decoder.start(ids, mask, self.max_tokens + 1)
        generated = generate(
            decoder.step,
            state,
            tf.fill([tf.shape(ids)[0], 1], begin),
            max_tokens=self.max_tokens,
            end_id=end,
            pad_id=tokenizer.pad_id,
            strategy=self.strategy,
        )
        return {
            "generated_text": Detokenizer(tokenizer)(generated.ids),
            "scores": generated.scores,
        }

    def serve(
        self,
        logits: Tensor,
        label_names: Sequence[str] | None,
        tokens: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Raise NotImplementedError: strings are answered by `answer`."""
        raise NotImplementedError

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return the "generated_text" of each text and its "score"."""
        pairs = zip(*(outputs[name] for name in self.serves), strict=True)
        return [{"generated_text": text, "score": score} for text, score in pairs]
