"""Where long texts may be cut, and the words of many in pieces that fit the cache."""

import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from apr_jax.text.characters import members
from apr_jax.text.cutting import Cutter
from apr_jax.text.pretokenizers import Rule
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
    for start, stop in cuts(data, breaks_of_utf8(cutter.rule), piece):
        text = Text(view[start:stop], capacity=capacity)
        yield text, cutter.bounds(text)


def cuts[T: (str, bytes)](data: T, breaks: re.Pattern[T], piece: int) -> Iterator[tuple[int, int]]:
    """Where pieces of this size, or as little more as the breaks allow, start and stop."""
    start = 0
    while match := breaks.search(data, start + piece):
        stop = match.start() if match.lastindex else match.end()
        yield start, stop
        start = stop
    yield start, len(data)


@functools.cache
def breaks_of_text(rule: Rule) -> re.Pattern[str]:
    """The rule's breaks.

    A pattern that begins with a set of characters is sought several times faster than one that
    begins with what must stand before them.
    """
    return re.compile("[ \\r\\n](?:" + "|".join(rule.breaks) + ")")


@functools.cache
def breaks_of_utf8(rule: Rule) -> re.Pattern[bytes]:
    """The same in UTF-8, and all places behind a divider that something follows."""
    not_space = rb"(?!\Z|" + b"|".join(_SPACES) + b")"
    of_bytes = {
        r"(?<=\S )()": rb"(?<= )" + _not_behind_spaces(b" ") + b"()",
        r"(?<=\S\n)(?=\S)": rb"(?<=\n)" + _not_behind_spaces(rb"\n") + not_space,
        r"(?<=[\r\n])(?=\S)": rb"(?<=[\r\n])" + not_space,
    }
    expressions = [of_bytes[expression] for expression in rule.breaks] + [rb"(?<=\xff)(?!\Z)"]
    return re.compile(rb"[ \r\n\xff](?:" + b"|".join(expressions) + b")")


def _not_behind_spaces(then: bytes) -> bytes:
    """Where no space and then this lies before; a pattern's look behind has one size."""
    return b"".join(b"(?<!(?:" + spaces + b")" + then + b")" for spaces in _SPACES)
