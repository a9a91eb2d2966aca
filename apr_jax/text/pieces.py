"""Texts one behind another in pieces that fit the cache, with dividers between, and their words."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from apr_jax.text.characters import members
from apr_jax.text.cutting import Cutter
from apr_jax.text.unicode_tables import SPACES
from apr_jax.text.word_table import Text

_PIECE = 1 << 18  # bytes cut at once
_DIVIDER = b"\xff"
# Bytes of characters that are spaces, so none of a space where it is the last of a character.
_OF_SPACES = b"".join({chr(point).encode() for point in members(SPACES) if point >= 0x80})


def cut_texts(
    cutter: Cutter, texts: Sequence[str], least: int = 0
) -> Iterator[tuple[Text, np.ndarray]]:
    """Piece by piece the bytes of the texts and the bounds (int64) of their words.

    Word i goes from bounds[i] to bounds[i + 1]. Behind each text stands a divider, which is a word
    too.

    Args:
      least: bytes that a piece has, but for the last one.
    """
    data = b"".join([part for text in texts for part in (text.encode(), _DIVIDER)])
    parts, bounds, size = [], [], 0
    for start, stop in _cuts(data, cutter.rule.breaks):
        piece = data[start:stop]
        starts = cutter.starts(piece)
        starts += size
        size += len(piece)
        parts.append(piece)
        bounds.append(starts)
        if size >= least:
            yield Text(*parts, capacity=least), np.concatenate([*bounds, [size]])
            parts, bounds, size = [], [], 0
    if parts:
        yield Text(*parts, capacity=least), np.concatenate([*bounds, [size]])


def _cuts(data: bytes, breaks: str) -> Iterator[tuple[int, int]]:
    no_space = rb"[^\s" + re.escape(_OF_SPACES) + b"]"
    pattern = re.compile(breaks.encode().replace(rb"\S", no_space) + rb"|(?<=\xff)(?s:.)")
    start = 0
    while match := pattern.search(data, start + _PIECE):
        yield start, match.start()
        start = match.start()
    yield start, len(data)
