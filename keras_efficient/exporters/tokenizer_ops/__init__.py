"""Tokenization in TensorFlow operations, for models that take strings."""
