"""Characters as HuggingFace `tokenizers` sees them: their classes and their normal form C."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from apr_jax.text import unicode_tables

_CODE_POINTS = 0x110000
_FIRST_MARK = 0x300
_FIRST_MARK_BYTE = 0xCC  # of its two in UTF-8 the first; no character below has a byte as high

# What `fold` writes for a character outside ASCII. Each stands for its class in patterns.
LETTER, NUMBER, SPACE, OTHER = "\xe9", "\xb2", "\xa0", "\xa1"
# What it writes instead where the case of letters matters: LETTER is then one of no case.
UPPER, LOWER, COMBINING = "\xc9", "\xe8", "\xa8"
# Characters that only the pre-tokeniser `Digits` takes for numbers; all else, for others.
NUMERIC = "\xb9"
# U+017F, the only character outside ASCII that a case-insensitive `s`, `t`, `r`, `e`, `v`, `m`,
# `l` or `d` matches.
LONG_S, LONG_S_POINT = "\xdf", "\u017f"


def members(table: str) -> np.ndarray:
    """int64 [n]: the code points of one of the `unicode_tables`, ascending."""
    pieces = []
    for entry in table.split():
        first, _, last = entry.partition("-")
        pieces.append(np.arange(int(first, 16), int(last or first, 16) + 1))
    return np.concatenate(pieces)


def fold(text: str, *, cased: bool = False) -> str:
    """The text with each character outside ASCII replaced by one that stands for its class.

    With `cased` letters of two cases, and combining marks, have classes of their own.

    Character i of the result stands for character i of the text, so patterns over the result need
    no Unicode tables, and what they match is cut out of the text. No lone surrogates, please.
    """
    if text.isascii():
        return text
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    table = _cased_classes() if cased else classes()
    return table[points].tobytes().decode("latin-1")


def nfc(text: str) -> str:
    """Normal form C as `tokenizers` computes it, with the tables of an older Unicode.

    Characters that only Python's newer tables sort or compose are walls: they stay, and what
    stands between them is normalised apart. Raises UnicodeEncodeError for lone surrogates.
    """
    return text if text.isascii() else _nfc(text, text.encode())


def encode_nfc(text: str) -> bytes:
    """The UTF-8 of `nfc`."""
    octets = text.encode()
    if text.isascii() or (normal := _nfc(text, octets)) is text:
        return octets
    return normal.encode()


def _nfc(text: str, octets: bytes) -> str:
    """As `nfc`, with the text's UTF-8; the same object where nothing changes."""
    # Characters below the first combining mark are not changed by each other.
    if np.frombuffer(octets, np.uint8).max() < _FIRST_MARK_BYTE:
        return text
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    match _nfc_kinds().take(points[points >= _FIRST_MARK]).max(initial=0):
        case 0:
            return text
        case 1:
            return unicodedata.normalize("NFC", text)
    parts = _walls().split(text)  # alternately what lies between walls, and a wall
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


@functools.cache
def classes() -> np.ndarray:
    """uint8 [0x110000]: what `fold` writes for each code point."""
    classes = np.full(_CODE_POINTS, ord(OTHER), np.uint8)
    classes[members(unicode_tables.LETTERS)] = ord(LETTER)
    classes[members(unicode_tables.NUMBERS)] = ord(NUMBER)
    classes[members(unicode_tables.SPACES)] = ord(SPACE)
    classes[members(unicode_tables.NUMERIC)] = ord(NUMERIC)
    classes[0x17F] = ord(LONG_S)
    classes[:0x80] = np.arange(0x80)
    return classes


@functools.cache
def _cased_classes() -> np.ndarray:
    cased = classes().copy()
    cased[members(unicode_tables.NUMERIC)] = ord(OTHER)
    cased[members(unicode_tables.UPPER)] = ord(UPPER)
    cased[members(unicode_tables.LOWER)] = ord(LOWER)
    cased[members(unicode_tables.COMBINING)] = ord(COMBINING)
    cased[0x17F] = ord(LONG_S)
    cased[:0x80] = np.arange(0x80)
    return cased


@functools.cache
def _nfc_kinds() -> np.ndarray:
    """uint8 [0x110000]: 0 for what stays among its like, 2 for walls, 1 for all else.

    What stays is a normal form, and neither a mark nor the second part of a composition: a text of
    nothing else is a normal form itself (the quick check of Unicode's annex 15).
    """
    kinds = np.zeros(_CODE_POINTS, np.uint8)
    kinds[0x1100:0x1200] = 1  # the parts of Hangul, whose decomposition Python does not list
    for point, parts in _decompositions().items():
        kinds[parts[1:]] = 1
        if unicodedata.normalize("NFC", chr(point)) != chr(point):
            kinds[point] = 1
    kinds[[p for p in _points() if unicodedata.combining(chr(p))]] = 1
    kinds[list(_wall_points())] = 2
    return kinds


@functools.cache
def _walls() -> re.Pattern[str]:
    return re.compile("([" + "".join(map(chr, sorted(_wall_points()))) + "])")


@functools.cache
def _wall_points() -> set[int]:
    marks = set(members(unicode_tables.MARKS).tolist())
    compositions = set(members(unicode_tables.COMPOSITIONS).tolist())
    old = marks | {
        ord(part) for point in compositions for part in unicodedata.normalize("NFD", chr(point))
    }
    walls = {p for p in _points() if unicodedata.combining(chr(p))} - marks - compositions
    for point, parts in _decompositions().items():
        if point not in marks and point not in compositions:
            # One wall keeps a pair apart; it must not be a character that older pairs need too.
            walls.add(point)
            walls.add(next((part for part in parts if part not in old), point))
    return walls


@functools.cache
def _decompositions() -> dict[int, list[int]]:
    """The canonical decompositions that Python's table lists."""
    listed = {point: unicodedata.decomposition(chr(point)) for point in _points()}
    return {
        point: [int(part, 16) for part in parts.split()]
        for point, parts in listed.items()
        if parts and not parts.startswith("<")
    }


def _points() -> Iterator[int]:
    """The planes that have marks or compositions; the test goes over all others too."""
    return itertools.chain(range(0x20000), range(0x2F800, 0x2FA20))
