"""The base class of errors that a user can mend: programs print one line and exit with 2."""


class UserError(Exception):
    """Bad input or bad usage. The message is one line: which file, what was found, what to do."""
