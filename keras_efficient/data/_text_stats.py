"""Summary of one epoch of a text dataset: batches, shapes and padding."""

import dataclasses

#: Number of shapes that are listed one by one; few enough for a line of a terminal.
_SHOWN_SHAPES = 8


@dataclasses.dataclass(frozen=True)
class TextStats:
    """Batches and padding of one epoch, which are the same in every epoch of a dataset.

    Attributes:
        examples: Number of texts per epoch.
        batches: Number of batches per epoch.
        batch_size: Number of texts in a full batch; None with `tokens_per_batch`.
        tokens: Number of tokens per epoch without padding, special tokens included. With
            `drop_remainder` and shuffling the omitted texts vary, and this is the mean over
            epochs.
        padded_tokens: Number of tokens per epoch with padding, all of which the model computes.
        shapes: Tuples of the number of texts in a batch, the padded length in tokens and the
            number of such batches, in the order of the lengths.
        truncated: Number of texts that were truncated to `max_length`. Default: 0.
        longest: Number of tokens of the longest text before truncation; None if the tokenizer does
            not tell. Default: None.
        max_length: Number of tokens to which texts are truncated. Default: None.
        tokens_per_batch: Largest number of tokens in a batch with padding; None with `batch_size`.
            Default: None.

    Examples:
        >>> stats = ke.data.TextStats(5, 2, 4, 30, 40, ((1, 16, 1), (4, 6, 1)), 0)
        >>> str(stats).splitlines()[0]
        '5 texts in 2 batches of 4: 30 tokens, 40 with padding (25.0% padding)'
    """

    examples: int
    batches: int
    batch_size: int | None
    tokens: int
    padded_tokens: int
    shapes: tuple[tuple[int, int, int], ...]
    truncated: int = 0
    longest: int | None = None
    max_length: int | None = None
    tokens_per_batch: int | None = None

    @property
    def padding_share(self) -> float:
        """Return the fraction of padding among all tokens: 1 - tokens / padded_tokens."""
        return 1 - self.tokens / self.padded_tokens

    def __str__(self) -> str:
        of = f"{self.batch_size}"
        if self.tokens_per_batch is not None:
            of = f"at most {self.tokens_per_batch} tokens"
        shapes = [f"{count} of [{batch}, {length}]" for batch, length, count in self.shapes]
        if len(shapes) > _SHOWN_SHAPES:
            shapes = [f"{len(shapes)} shapes", *shapes[:2], "...", *shapes[-2:]]
        return (
            f"{self.examples} texts in {self.batches} batches of {of}: "
            f"{self.tokens} tokens, {self.padded_tokens} with padding "
            f"({self.padding_share:.1%} padding)\n"
            f"batches: {', '.join(shapes)}\n"
            f"{self.truncation}"
        )

    @property
    def truncation(self) -> str:
        """Return how many texts are cut: "3 of 60 texts (5.0%) are cut at 128 tokens, ..."."""
        if not self.truncated:
            return "no text is cut"
        share = self.truncated / max(1, self.examples)
        are = "is" if self.truncated == 1 else "are"
        at = "" if self.max_length is None else f" at {self.max_length:,} tokens"
        most = "" if self.longest is None else f", the longest has {self.longest:,}"
        return f"{self.truncated:,} of {self.examples:,} texts ({share:.1%}) {are} cut{at}{most}"
