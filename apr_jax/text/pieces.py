"""Texts one behind another in pieces that fit the cache, with dividers between, and their words."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from apr_jax.text.characters import DIVIDER_POINT, classes
from apr_jax.text.cutting import Cutter
from apr_jax.text.word_table import Text

_PIECE = 1 << 18  # characters cut at once
_DIVIDER = chr(DIVIDER_POINT)


def cut_texts(
    cutter: Cutter, texts: Sequence[str], least: int = 0
) -> Iterator[tuple[Text, np.ndarray]]:
    """Piece by piece the bytes of the texts and the bounds (int64) of their words.

    Word i goes from bounds[i] to bounds[i + 1]. Behind each text stands a divider, which is a word
    too. Texts of nothing but ASCII are twice as fast when none of another kind is among them.

    Args:
      least: bytes that a piece has, but for the last one.
    """
    is_ascii = all(text.isascii() for text in texts)
    breaks = cutter.rule.breaks
    parts, bounds, size = [], [], 0
    for folded, data in _ascii_pieces(texts, breaks) if is_ascii else _other_pieces(texts, breaks):
        starts = cutter.starts(folded)
        if folded is not data:  # from characters to bytes
            octets = np.frombuffer(data, np.uint8)
            starts = np.flatnonzero((octets & 0xC0) != 0x80).take(starts)
        starts += size
        size += len(data)
        parts.append(data)
        bounds.append(starts)
        if size >= least:
            yield Text(*parts, capacity=least), np.concatenate([*bounds, [size]])
            parts, bounds, size = [], [], 0
    if parts:
        yield Text(*parts, capacity=least), np.concatenate([*bounds, [size]])


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
