"""`CausalLM`: predict the next token, to train a model that writes text."""

from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.flavor._typing import Dataset
from keras_efficient.tasks._language_model import LanguageModel


class CausalLM(LanguageModel):
    """Causal language modelling: each token is predicted from those before it.

    It needs no labels. Texts begin with the start token of the tokenizer, and the model also learns
    where they end. With `texts=2` the two texts are a prompt and its completion: the prompt is
    read, and only the tokens of the completion count. The loss is the cross-entropy, averaged over
    the tokens that count. The report is a `ke.metrics.LanguageModelReport`.

    Args:
        texts: Number of texts per example, 2 for prompts and completions. Default: 1.

    Examples:
        >>> task = ke.tasks.CausalLM(texts=2)
        >>> records = ke.data.Records.of(["2 + 3 ="], second_texts=[" 5"])
        >>> tokenizer = ke.data.train_tokenizer(["2 + 3 = 5"], vocabulary_size=260)
        >>> features, labels = next(iter(task.batches(records, tokenizer, batch_size=1)))
        >>> int((labels != -100).numpy().sum())
        3

    Reference:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners";
        `transformers.TFAutoModelForCausalLM`, `keras_hub.models.CausalLM`.
    """

    name = "causal_lm"
    serves = ()
    head = "next_token"
    pretrains = False
    most_texts = 2

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

    def serve(self, logits, label_names, tokens=None):
        """Return nothing: there is no signature of strings."""
        return {}

    def decode(self, outputs, label_names):
        """Raise KeyError: there is no signature of strings."""
        raise KeyError("continuation")
