"""`Masking`: which tokens of texts are to be predicted, for masked language modelling."""

import dataclasses

from keras_efficient._errors import InputError

UNITS = ("token", "word", "span")


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which tokens `ke.data.text` selects for prediction, and what the model sees in their place.

    A share of the tokens of each text is selected, at least one. Of these most are replaced by the
    mask token, some by random tokens, and the others stay as they are. Special tokens are never
    selected, nor drawn as random tokens.

    The selection depends only on the seed of the dataset, the epoch, the text and the position of
    the token: not on the order of the texts, the batch size, or how batches are divided among
    workers. It is made in TensorFlow operations.

    Args:
        mask_selection_rate: Share of the tokens that are selected; of the words, for the units
            "word" and "span". Above 0 and at most 1. Default: 0.15.
        mask_token_rate: Share of the selected tokens that become the mask token. Default: 0.8.
        random_token_rate: Share of the selected tokens that become random tokens. Default: 0.1.
        unit: What is selected. "token": single tokens, as in BERT. "word": whole words, with all
            of their tokens. "span": runs of words, as in SpanBERT; the tokens of a run are
            replaced in the same way. Default: "token".
        geometric_p: Parameter of the geometric distribution of the lengths of spans, in words.
            Default: 0.2.
        max_span_length: Longest span, in words, at which the distribution is cut off. With the
            default `geometric_p` spans have 3.8 words on average. Default: 10.
        static: Whether the same tokens are selected in each epoch, as for validation data.
            Default: False.

    Raises:
        InputError: An argument is out of its range.

    Examples:
        >>> masking = ke.data.Masking(mask_selection_rate=0.3)
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB | ke.data.MASK_POSITIONS
        ... )
        >>> data = ke.data.text(["a good film"], tokenizer, batch_size=1, masking=masking)
        >>> features, labels = next(iter(data))
        >>> features["mask_positions"].shape == labels.shape
        True

    Reference:
        Devlin et al. 2019, "BERT"; Joshi et al. 2020, "SpanBERT"; the names are those of
        `keras_hub.layers.MaskedLMMaskGenerator`.
    """

    mask_selection_rate: float = 0.15
    mask_token_rate: float = 0.8
    random_token_rate: float = 0.1
    unit: str = "token"
    geometric_p: float = 0.2
    max_span_length: int = 10
    static: bool = False

    def __post_init__(self):
        rates = ("mask_selection_rate", "mask_token_rate", "random_token_rate", "geometric_p")
        for name in rates:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            lowest = name in ("mask_selection_rate", "geometric_p")
            if not number or not 0 <= value <= 1 or (lowest and value == 0):
                raise InputError(
                    f"`{name}` must be a share from 0 to 1{', above 0' if lowest else ''}. "
                    f"Received: {value!r}. Give for example {getattr(Masking, name)}."
                )
        if self.mask_token_rate + self.random_token_rate > 1:
            raise InputError(
                "`mask_token_rate` and `random_token_rate` are shares of the same tokens, of at "
                f"most 1 together. Received: {self.mask_token_rate} and {self.random_token_rate}. "
                "Lower one of them."
            )
        if self.unit not in UNITS:
            raise InputError(
                f"`unit` must be one of {', '.join(UNITS)}. Received: {self.unit!r:.60}. Choose "
                "one."
            )
        if type(self.max_span_length) is not int or self.max_span_length < 1:
            raise InputError(
                "`max_span_length` must be an int of 1 word or more. Received: "
                f"{self.max_span_length!r}. Give for example 10."
            )
