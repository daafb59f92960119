"""The command line: thin, every command calls the public functions."""

from keras_efficient.cli._app import main

__all__ = ["main"]
