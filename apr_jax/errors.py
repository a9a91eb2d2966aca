"""The base class of errors that a user can mend: programs print one line and exit with 2."""


class UserError(Exception):
    """Bad input or bad usage. The message is one line: which file, what was found, what to do.

    What a message repeats of a file cannot break the line or command the terminal: characters that
    are not printable are written as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if message.isprintable() else "".join(map(_printable, message)))


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def short(text: str) -> str:
    """`text` for a message, cut at 80 characters: what a file holds can be of any length."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def counted(number: int, noun: str) -> str:
    """How many there are: 1 document, 2 documents."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
