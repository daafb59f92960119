"""A signature that takes strings: the tokenizer as TensorFlow operations."""
