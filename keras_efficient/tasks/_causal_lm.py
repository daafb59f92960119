"""`CausalLM`: predict the next token, to train a model that writes text."""

from collections.abc import Mapping
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.data._tokenized_texts import TokenizedTexts
from keras_efficient.flavor._typing import Dataset, Model, Tensor
from keras_efficient.tasks._text_generation import TextGeneration


class CausalLM(TextGeneration):
    """Causal language modelling: each token is predicted from those before it.

    It needs no labels. Texts begin with the start token of the tokenizer, and the model also learns
    where they end. With `texts=2` the two texts are a prompt and its completion: the prompt is
    read, and only the tokens of the completion count. The loss is the cross-entropy, averaged over
    the tokens that count. The report is a `ke.metrics.LanguageModelReport`.

    The signature of strings continues texts, or answers prompts, with cached keys and values:
    "generated_text", string `[batch]`, and "log_probability", float32 `[batch]`, the sum over the
    generated tokens. It needs a WordPiece tokenizer, as `ke.data.train_tokenizer` makes it with
    `kind="wordpiece"`.

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
    head = "next_token"
    most_texts = 2

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the name of the prompt, to which the signature answers."""
        return ("text",)

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require texts, with completions if the examples are pairs."""
        super().check(train, validation)
        on_disk = isinstance(train, TokenizedTexts)
        pairs = train.pairs if on_disk else train.second_texts is not None
        if pairs != (self.texts == 2):
            raise InputError(
                "Prompts have completions in a second text column, and other texts have none. "
                f"Received: {train!r:.100} for {self!r}. Name both columns, or one."
            )

    def tokenize_to_disk(
        self, source: Any, tokenizer: Any, directory: Any, **options: Any
    ) -> TokenizedTexts:
        """Tokenize texts that are larger than memory, to be labelled with the next tokens."""
        return super().tokenize_to_disk(source, tokenizer, directory, next_token=True, **options)

    def batches(
        self, records: Any, tokenizer: Any, *, training: bool = True, **options: Any
    ) -> Dataset:
        """Return batches of texts whose labels are the next tokens."""
        return super().batches(records, tokenizer, training=training, next_token=True, **options)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Require tokens that begin and end texts, and space for a text beside `max_tokens`."""
        super().check_tokenizer(tokenizer)
        if tokenizer.start_id is None or tokenizer.end_id is None:
            raise InputError(
                "Text is generated between tokens that begin and end it. Received: "
                f"{tokenizer!r} without them. Give a tokenizer with <s> and </s>, or [CLS] and "
                "[SEP]."
            )
        if tokenizer.max_length - self.max_tokens < 2:
            raise InputError(
                "A model must have room for a text and what follows it. Received: a tokenizer of "
                f"max_length={tokenizer.max_length} and max_tokens={self.max_tokens} of the task. "
                "Give the task fewer, or export without the text signature."
            )

    def answer(
        self, model: Model, features: Mapping[str, Tensor], tokenizer: Any
    ) -> dict[str, Tensor]:
        """Return what follows texts. The end of a text that leaves no space for it is not read."""
        import tensorflow as tf

        from keras_efficient.generation._causal_steps import causal_steps

        longest = tokenizer.max_length - self.max_tokens
        ids, mask = (features[tokenizer.inputs[role]] for role in ("ids", "mask"))
        # Without the end token.
        lengths = tf.minimum(tf.reduce_sum(mask, 1) - 1, longest)
        ids = ids[:, :longest]
        steps = causal_steps(model)
        state = steps.start(ids, tf.shape(ids)[1] + self.max_tokens)
        return self._generate(steps.step, state, ids, tokenizer, tokenizer.end_id, lengths)
