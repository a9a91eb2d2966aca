"""Characters as HuggingFace `tokenizers` sees them: their classes and their normal form C."""

import functools
import re
import unicodedata

import numpy as np

from apr_jax.text import unicode_tables

_CODE_POINTS = 0x110000

# What `fold` writes for a character outside ASCII. Each stands for its class in patterns.
LETTER, NUMBER, SPACE, OTHER = "\xe9", "\xb2", "\xa0", "\xa1"
# U+017F, the only character outside ASCII that a case-insensitive `s`, `t`, `r`, `e`, `v`, `m`,
# `l` or `d` matches.
LONG_S = "\xdf"


def members(table: str) -> np.ndarray:
    """int64 [n]: the code points of one of the `unicode_tables`, ascending."""
    pieces = []
    for entry in table.split():
        first, _, last = entry.partition("-")
        pieces.append(np.arange(int(first, 16), int(last or first, 16) + 1))
    return np.concatenate(pieces)


def fold(text: str) -> str:
    """The text with each character outside ASCII replaced by one that stands for its class.

    Character i of the result stands for character i of the text, so patterns over the result need
    no Unicode tables, and what they match is cut out of the text. No lone surrogates, please.
    """
    if text.isascii():
        return text
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    return _classes()[points].tobytes().decode("latin-1")


def nfc(text: str) -> str:
    """Normal form C as `tokenizers` computes it, with the tables of an older Unicode.

    Characters that only Python's newer tables sort or compose are walls: they stay, and what
    stands between them is normalised apart.
    """
    if text.isascii():
        return text
    parts = _walls().split(text)  # alternately what lies between walls, and a wall
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


@functools.cache
def _classes() -> np.ndarray:
    classes = np.full(_CODE_POINTS, ord(OTHER), np.uint8)
    classes[members(unicode_tables.LETTERS)] = ord(LETTER)
    classes[members(unicode_tables.NUMBERS)] = ord(NUMBER)
    classes[members(unicode_tables.SPACES)] = ord(SPACE)
    classes[0x17F] = ord(LONG_S)
    classes[:0x80] = np.arange(0x80)
    return classes


@functools.cache
def _walls() -> re.Pattern[str]:
    marks = set(members(unicode_tables.MARKS).tolist())
    compositions = set(members(unicode_tables.COMPOSITIONS).tolist())
    old = marks | {
        ord(part) for point in compositions for part in unicodedata.normalize("NFD", chr(point))
    }
    walls = set()
    for point in range(_CODE_POINTS):
        if point in marks or point in compositions:
            continue
        character = chr(point)
        if unicodedata.combining(character):
            walls.add(point)
        decomposition = unicodedata.decomposition(character)
        if decomposition and not decomposition.startswith("<"):
            # One wall keeps a pair apart; it must not be a character that older pairs need too.
            walls.add(point)
            parts = [int(part, 16) for part in decomposition.split()]
            walls.add(next((part for part in parts if part not in old), point))
    return re.compile("([" + "".join(map(chr, sorted(walls))) + "])")
