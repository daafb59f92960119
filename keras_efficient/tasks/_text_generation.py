"""`TextGeneration`: what the tasks whose models write texts have in common."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.flavor._typing import Tensor
from keras_efficient.tasks._language_model import LanguageModel


class TextGeneration(LanguageModel):
    """Base class of tasks whose models write texts, token by token.

    The signature of strings answers with "generated_text", string `[batch]`, and "log_probability",
    float32 `[batch]`, the sum over the generated tokens. The loop over the tokens, with cached keys
    and values, is part of the graph.

    Args:
        texts: Number of texts per example. Default: 1.
        max_tokens: Largest number of tokens to generate. Default: 64.
        strategy: How to choose them: `ke.generation.Greedy()`, `Sample(...)` or `Beam(...)`.
            Default: None, which is `Greedy()`.

    Raises:
        InputError: `max_tokens` is not a number of tokens, or there are too many texts.
    """

    serves = ("generated_text", "log_probability")
    generates = True
    pretrains = False

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

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Require a tokenizer whose tokens can be made texts."""
        from keras_efficient.data._detokenizer import Detokenizer

        Detokenizer(tokenizer)

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
        """Return "generated_text" and "log_probability" of each text."""
        numbers = list(map(float, outputs["log_probability"]))
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not a finite log-probability for each text")
        return [
            {"generated_text": str(text), "log_probability": number}
            for text, number in zip(outputs["generated_text"], numbers, strict=True)
        ]

    def _generate(self, step, state, ids, tokenizer, end_id, lengths=None) -> dict[str, Tensor]:
        """Return the outputs of the signature; the arguments are those of `generate`."""
        import tensorflow as tf

        from keras_efficient.data._detokenizer import Detokenizer
        from keras_efficient.generation._generate import generate

        found = generate(
            step,
            state,
            ids,
            lengths=lengths,
            max_tokens=self.max_tokens,
            end_id=end_id,
            pad_id=tokenizer.pad_id,
            strategy=self.strategy,
        )
        given: Any = tf.shape(ids)[1] if lengths is None else lengths[:, None]
        columns = tf.range(tf.shape(found.ids)[1])
        written = (columns >= given) & (columns < found.lengths[:, None])
        text = Detokenizer(tokenizer)(tf.where(written, found.ids, tokenizer.pad_id))
        return {"generated_text": text, "log_probability": found.scores}
