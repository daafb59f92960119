"""The label of tokens that do not count."""

#: In losses, metrics and reports; the one that Hugging Face's losses leave out.
IGNORED = -100
