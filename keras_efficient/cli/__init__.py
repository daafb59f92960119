"""The command line `keras-efficient`, a thin layer over the public functions."""

from keras_efficient.cli._app import main

__all__ = ["main"]
