"""LiteRT files, by TensorFlow's converter."""
