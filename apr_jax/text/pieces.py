"""Texts one behind another in pieces that fit the cache, with dividers between, and their words."""

import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from apr_jax.text.characters import members
from apr_jax.text.cutting import Cutter
from apr_jax.text.unicode_tables import SPACES
from apr_jax.text.word_table import Text

_DIVIDER = b"\xff"
_WIDE_SPACES = [chr(point).encode() for point in members(SPACES)]
# Patterns of spaces of one, two and three bytes.
_SPACES = [rb"\s"] + [
    b"|".join(re.escape(space) for space in _WIDE_SPACES if len(space) == size) for size in (2, 3)
]


def cut_texts(
    cutter: Cutter, texts: Sequence[bytes], *, piece: int, capacity: int = 0
) -> Iterator[tuple[Text, np.ndarray]]:
    """Piece by piece the bytes of texts, which are UTF-8, and the bounds (int64) of their words.

    Word i goes from bounds[i] to bounds[i + 1]. Behind each text stands a divider, which is a word
    too.

    Args:
      piece: bytes after which a piece ends where it can.
      capacity: bytes that the pieces have room for at least.
    """
    data = b"".join([part for text in texts for part in (text, _DIVIDER)])
    view = memoryview(data)
    for start, stop in _cuts(data, cutter.rule.breaks, piece):
        text = Text(view[start:stop], capacity=capacity)
        yield text, cutter.bounds(text)


def _cuts(data: bytes, breaks: str, piece: int) -> Iterator[tuple[int, int]]:
    """Where pieces start and stop: at the rule's breaks, and behind dividers."""
    pattern = _pattern(breaks)
    start = 0
    while match := pattern.search(data, start + piece):
        yield start, match.start()
        start = match.start()
    yield start, len(data)


@functools.cache
def _pattern(breaks: str) -> re.Pattern[bytes]:
    """The same breaks in UTF-8, and all that follows a divider."""
    in_bytes = {
        rb"(?<=\S\n)": _not_behind_spaces(rb"\n") + rb"(?<=\n)",
        rb"(?<=\S)": _not_behind_spaces(b""),
        rb"\S": rb"(?!" + b"|".join(_SPACES) + rb")(?s:.)",
    }
    expression = breaks.encode()
    for of_characters, of_bytes in in_bytes.items():
        expression = expression.replace(of_characters, of_bytes)
    return re.compile(expression + rb"|(?<=\xff)(?s:.)")


def _not_behind_spaces(then: bytes) -> bytes:
    """Where no space and then this lies before; a pattern's look behind has one size."""
    return b"".join(b"(?<!(?:" + spaces + b")" + then + b")" for spaces in _SPACES)
