"""Texts one behind another in pieces that fit the cache, with dividers between, and their words."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from apr_jax.text.characters import DIVIDER_POINT, classes
from apr_jax.text.cutting import Cutter
from apr_jax.text.word_table import Text

_PIECE = 1 << 17  # characters gone through at once
_DIVIDER = chr(DIVIDER_POINT)


def cut_texts(
    cutter: Cutter, texts: Sequence[str]
) -> Iterator[tuple[Text, np.ndarray, np.ndarray]]:
    """Piece by piece the bytes of the texts, where their words start, and the words' lengths.

    Behind each text stands a divider, which is a word too. Texts of nothing but ASCII are twice as
    fast when none of another kind is among them.
    """
    is_ascii = all(text.isascii() for text in texts)
    breaks = cutter.rule.breaks
    for folded, data in _ascii_pieces(texts, breaks) if is_ascii else _other_pieces(texts, breaks):
        text = Text(data)
        starts = cutter.starts(folded)
        if folded is not data:  # from characters to bytes
            starts = np.flatnonzero((text.bytes[: len(data)] & 0xC0) != 0x80).take(starts)
        lengths = np.empty_like(starts)
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1] = len(data) - starts[-1]
        yield text, starts, lengths


def _ascii_pieces(texts: Sequence[str], breaks: str) -> Iterator[tuple[bytes, bytes]]:
    data = b"".join([part for text in texts for part in (text.encode(), b"\xff")])
    for start, stop in _cuts(re.compile(breaks.encode()), data):
        piece = data[start:stop]
        yield piece, piece


def _other_pieces(texts: Sequence[str], breaks: str) -> Iterator[tuple[bytes, bytes]]:
    """Each with its folded form: a byte for a character."""
    joined = "".join([part for text in texts for part in (text, _DIVIDER)])
    for start, stop in _cuts(re.compile(breaks), joined):
        piece = joined[start:stop]
        points = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), "<u4")
        folded = classes().take(points.astype(np.intp))
        yield folded.tobytes(), piece.encode("utf-8", "surrogateescape")


def _cuts(pattern: re.Pattern[Any], text: Any) -> Iterator[tuple[int, int]]:
    start = 0
    while match := pattern.search(text, start + _PIECE):
        yield start, match.start()
        start = match.start()
    yield start, len(text)
