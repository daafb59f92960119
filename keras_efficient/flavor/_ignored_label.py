"""The label and the logit of tokens that do not count."""

#: In losses, metrics and reports; the one that Hugging Face's losses leave out.
IGNORED = -100
#: Logit of masked tokens, where logits are over tokens. It is far below any other, and finite,
#: since 0 · ∞ is no number in distillation; a larger one would hide differences from checks that
#: are relative to the largest output.
MASKED = -100.0
