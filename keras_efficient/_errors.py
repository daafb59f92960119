"""Exceptions of this package."""


class InputError(ValueError):
    """Invalid input, detected before any work is lost.

    The message states the rule, the value received and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """


class VerificationError(RuntimeError):
    """An exported model that does not load, or whose outputs differ from the model in memory."""
