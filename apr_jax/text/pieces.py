"""Texts one behind another in pieces that fit the cache, with dividers between, and their words."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from apr_jax.text.characters import members
from apr_jax.text.cutting import Cutter
from apr_jax.text.unicode_tables import SPACES
from apr_jax.text.word_table import Text

_DIVIDER = b"\xff"
# Those of spaces outside ASCII: what holds none of them, and is none in ASCII, is no space.
_BYTES_OF_SPACES = b"".join({chr(point).encode() for point in members(SPACES) if point >= 0x80})


def cut_texts(
    cutter: Cutter, texts: Sequence[str], *, piece: int, capacity: int = 0
) -> Iterator[tuple[Text, np.ndarray]]:
    """Piece by piece the bytes of the texts and the bounds (int64) of their words.

    Word i goes from bounds[i] to bounds[i + 1]. Behind each text stands a divider, which is a word
    too.

    Args:
      piece: bytes after which a piece ends where it can.
      capacity: bytes that the pieces have room for at least.
    """
    data = b"".join([part for text in texts for part in (text.encode(), _DIVIDER)])
    view = memoryview(data)
    for start, stop in _cuts(data, cutter.rule.breaks, piece):
        text = Text(view[start:stop], capacity=capacity)
        yield text, cutter.bounds(text)


def _cuts(data: bytes, breaks: str, piece: int) -> Iterator[tuple[int, int]]:
    """Where pieces start and stop: at the rule's breaks, and behind dividers."""
    no_space = rb"[^\s" + re.escape(_BYTES_OF_SPACES) + b"]"
    pattern = re.compile(breaks.encode().replace(rb"\S", no_space) + rb"|(?<=\xff)(?s:.)")
    start = 0
    while match := pattern.search(data, start + piece):
        yield start, match.start()
        start = match.start()
    yield start, len(data)
