"""`LanguageModel`: what the tasks that predict tokens of texts have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._read_records import read_records
from keras_efficient.data._records import Records
from keras_efficient.data._tokenized_texts import TokenizedTexts
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.metrics._language_model_report import (
    LanguageModelReport,
    language_model_report,
)
from keras_efficient.metrics._scores import scores_of
from keras_efficient.tasks._task import Task


class LanguageModel(Task):
    """Base class of tasks that predict tokens of texts, which need no labels.

    Args:
        texts: Number of texts per example. Default: 1.

    Raises:
        InputError: `texts` is more than the task takes.

    Examples:
        >>> isinstance(ke.tasks.get("masked_lm"), ke.tasks.LanguageModel)
        True

    Reference:
        Jurafsky & Martin, "Speech and Language Processing", chapters 3 and 11.
    """

    labelled = False
    #: Largest number of texts per example.
    most_texts: ClassVar[int] = 1
    choices: ClassVar = {"perplexity": ("perplexity", "min"), "loss": ("loss", "min")}
    pretrains = True

    def __init__(self, texts: int = 1):
        super().__init__(texts)
        if texts > self.most_texts:
            raise InputError(
                "A language model learns from single texts. Received: texts=2. Name one text "
                "column."
            )

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[Any, tuple[str, ...]]:
        """Return no labels, and no names."""
        return None, ()

    def read(self, source: Any, **columns: Any) -> Records:
        """Read texts, without labels: .txt files with one text per line, or data with columns.

        Args:
            source: As for `ke.data.read_records`.
            columns: `text_column` and `delimiter`, likewise; others are ignored.

        Raises:
            InputError: The data cannot be used.
        """
        named = {k: v for k, v in columns.items() if k in ("text_column", "delimiter")}
        return read_records(source, label_column=None, **named)

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require a text."""
        if not len(train):
            raise InputError(
                f"There must be texts to train on. Received: none ({train.source}). Check what "
                "selected them."
            )

    def tokenize_to_disk(
        self, source: Any, tokenizer: Any, directory: Any, **options: Any
    ) -> TokenizedTexts:
        """Tokenize texts that are larger than memory, without labels."""
        options["label_column"] = None
        return super().tokenize_to_disk(source, tokenizer, directory, **options)

    def describe(self, train: Records | TokenizedTexts, validation: Records) -> tuple[str, str]:
        """Return how much text there is, and what the perplexity is compared with."""
        if isinstance(train, TokenizedTexts):
            amount = f"{train.tokens:,} tokens"
        else:
            amount = f"{sum(map(len, train.texts)):,} characters"
        return (
            f"{amount} to train on, without labels",
            "the frequencies of the evaluated tokens, in the report",
        )

    def head_size(self, num_labels: int | None) -> int:
        """Return 0: the head has an output for each token of the vocabulary."""
        if num_labels is not None:
            raise InputError(
                "A language model has no classes. Received: "
                f"num_labels={num_labels!r}. Leave `num_labels` out."
            )
        return 0

    def label_names(self, given: Sequence[str] | None, outputs: int) -> list[str]:
        """Return no names: those of the outputs are the vocabulary of the tokenizer."""
        if given:
            raise InputError(
                "The outputs of a language model are the tokens of its tokenizer. Received: "
                f"{len(given)} label_names. Leave them out."
            )
        return []

    def loss(self, keras: Any) -> Any:
        """Return the cross-entropy of the softmax, averaged over the tokens that count."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)

    def metrics(self, keras: Any, num_labels: int) -> list:
        """Return the perplexity."""
        from keras_efficient.metrics._perplexity import perplexity

        return [perplexity(library=keras.__name__)]

    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return int64 ids `[batch, tokens]`, -100 for tokens that do not count."""
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.dtype.kind not in "iu":
            raise InputError(
                f"`{argument}` compares an id for each token. Received: labels of shape "
                f"{labels.shape} and type {labels.dtype}. Name the `task` of the model."
            )
        return labels.astype("int64")

    def scores(self, outputs: Mapping[str, Any], labels: Any = None) -> np.ndarray:
        """Return what `report` needs of the logits, float32 `[batch, tokens, 2]`.

        These are the log-probability of the label, and whether it is the most probable token, for
        each token: logits for the whole vocabulary would not fit into memory for many texts.
        """
        import tensorflow as tf

        logits = scores_of(outputs, rank=3).astype("float32")
        labels = np.asarray([] if labels is None else labels)
        if labels.shape != logits.shape[:2]:
            raise InputError(
                "A language model is compared with the id of each token. Received: labels of "
                f"shape {labels.shape} for logits of shape {logits.shape}. Give the labels of "
                "the same batch."
            )
        ids = np.maximum(labels, 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ids, logits).numpy()
        return np.stack([-losses, logits.argmax(-1) == ids], -1).astype("float32")

    def report(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> LanguageModelReport:
        """Return perplexity and accuracy beside those of the frequencies of the tokens."""
        return language_model_report(
            labels, scores[..., 0], scores[..., 1], sample_weight=sample_weight
        )
