"""The exceptions of this package."""


class InputError(ValueError):
    """Bad input, found before any work is lost.

    The message states the rule, what was received and how to mend it. The command line prints it
    without a traceback and exits with code 2.
    """


class VerificationError(RuntimeError):
    """An exported model that did not load, or did not compute what the model in memory does."""
