"""`CausalLM`: predict the next token, to train a model that writes text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.flavor._typing import Dataset, Tensor
from keras_efficient.tasks._language_model import LanguageModel


class CausalLM(LanguageModel):
    """Causal language modelling: each token is predicted from those before it.

    It needs no labels. Texts begin with the start token of the tokenizer, and the model also learns
    where they end. With `texts=2` the two texts are a prompt and its completion: the prompt is
    read, and only the tokens of the completion count. The loss is the cross-entropy, averaged over
    the tokens that count. The report is a `ke.metrics.LanguageModelReport`.

    The signature of strings continues texts, or answers prompts, with cached keys and values:
    "continuation", string `[batch]`, and "log_probability", float32 `[batch]`, the sum over the
    generated tokens. It needs a WordPiece tokenizer, as `ke.data.train_tokenizer` makes it with
    `kind="wordpiece"`, and weights that are floats.

    Args:
        texts: Number of texts per example, 2 for prompts and completions. Default: 1.
        max_tokens: Largest number of tokens that the signature generates. Default: 64.
        strategy: How it chooses them, a strategy of `ke.generation`. Default: None, greedily.

    Raises:
        InputError: `texts` is neither 1 nor 2, or `max_tokens` is not a number of tokens.

    Examples:
        >>> task = ke.tasks.CausalLM(texts=2)
        >>> records = ke.data.Records.of(["2 + 3 ="], second_texts=[" 5"])
        >>> tokenizer = ke.data.train_tokenizer(["2 + 3 = 5"], vocabulary_size=260)
        >>> features, labels = next(iter(task.batches(records, tokenizer, batch_size=1)))
        >>> int((labels != -100).numpy().sum())
        2

    Reference:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners";
        `transformers.TFAutoModelForCausalLM`, `keras_hub.models.CausalLM`.
    """

    name = "causal_lm"
    serves = ("continuation", "log_probability")
    head = "next_token"
    pretrains = False
    most_texts = 2

    def __init__(self, texts: int = 1, max_tokens: int = 64, strategy: Any = None):
        super().__init__(texts)
        if type(max_tokens) is not int or max_tokens < 1:
            raise InputError(
                f"`max_tokens` must be a number of tokens. Received: {max_tokens!r}. Give for "
                "example 64."
            )
        self.max_tokens, self._strategy = max_tokens, strategy

    @property
    def strategy(self) -> Any:
        """Return how tokens are chosen."""
        from keras_efficient.generation._strategies import Greedy

        return Greedy() if self._strategy is None else self._strategy

    @property
    def served_texts(self) -> int:
        """Return 1: a prompt."""
        return 1

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require texts, with completions if the examples are pairs."""
        super().check(train, validation)
        if (train.second_texts is not None) != (self.texts == 2):
            raise InputError(
                "Prompts have completions in a second text column, and other texts have none. "
                f"Received: {train!r:.100} for {self!r}. Name both columns, or one."
            )

    def batches(
        self, records: Any, tokenizer: Any, *, training: bool = True, **options: Any
    ) -> Dataset:
        """Return batches of texts whose labels are the next tokens."""
        return super().batches(records, tokenizer, training=training, next_token=True, **options)

    def serve(
        self,
        logits: Tensor,
        label_names: Sequence[str] | None,
        tokens: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return nothing: what is served does not follow from the logits of one call."""
        return {}

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "continuation" and "log_probability" of each text."""
        numbers = list(map(float, outputs["log_probability"]))
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not a finite log-probability for each text")
        return [
            {"continuation": str(text), "log_probability": number}
            for text, number in zip(outputs["continuation"], numbers, strict=True)
        ]
