"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Bad input, found before any work is lost.

    The message states the rule, what was received and how to mend it. The command line prints it
    without a traceback and exits with code 2.
    """
