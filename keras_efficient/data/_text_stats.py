"""What an epoch of a text dataset consists of."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextStats:
    """The make-up of one epoch. It is the same for every epoch: it does not depend on the shuffle.

    Args:
        examples: Texts in an epoch.
        batches: Batches in an epoch.
        batch_size: Texts in a full batch.
        tokens: Real tokens in an epoch, special ones included. (With `drop_remainder` and
            shuffling, the mean over epochs: which texts are left out changes.)
        padded_tokens: Tokens with padding: what the model computes.
        shapes: (texts, padded length in tokens, number of such batches), by length.
        truncated: How many of all texts were cut to `max_length`.

    Example:
        >>> str(TextStats(5, 2, 4, 30, 40, ((1, 16, 1), (4, 6, 1)), 0)).splitlines()[0]
        '5 texts in 2 batches of 4: 30 tokens, 40 with padding (25.0% padding)'
    """

    examples: int
    batches: int
    batch_size: int
    tokens: int
    padded_tokens: int
    shapes: tuple[tuple[int, int, int], ...]
    truncated: int

    @property
    def padding_share(self) -> float:
        """The share of padding among all tokens: 1 - tokens / padded_tokens."""
        return 1 - self.tokens / self.padded_tokens

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{count} of [{batch}, {length}]" for batch, length, count in self.shapes
        )
        return (
            f"{self.examples} texts in {self.batches} batches of {self.batch_size}: "
            f"{self.tokens} tokens, {self.padded_tokens} with padding "
            f"({self.padding_share:.1%} padding)\n"
            f"batches: {shapes}\n"
            f"{self.truncated} texts were cut"
        )
