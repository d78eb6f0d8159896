"""The error for mistakes that a person can mend.

The message says what is wrong, where, what was expected and the remedy; the command line prints it
without a traceback. Every other exception is a fault of the program and keeps its traceback.
"""


class MuvaError(Exception):
    """Something outside the program is wrong: an input, a setting, a file, a machine."""


class SettingsError(MuvaError):
    """A setting is unknown, of the wrong type, or impossible beside another one."""
