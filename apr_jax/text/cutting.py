"""Finding where words start, for any rule of `pretokenizers`, by operations on arrays of bytes.

Nothing is scanned. Whether a word starts at a character follows from the classes of the two
characters before it, of itself and of the next one, but for a few rare cases that are mended after:
characters of several bytes, contractions, blanks at the end of a line, and long numbers.

Where many characters have several bytes, the text is first made one of a byte a character, and the
bounds are taken back to its bytes after.
"""

import functools
import itertools
from typing import Any

import numpy as np

from apr_jax.text.characters import (
    LETTER,
    LONG_S,
    LONG_S_POINT,
    NUMBER,
    NUMERIC,
    OTHER,
    SPACE,
    classes,
)
from apr_jax.text.pretokenizers import Rule
from apr_jax.text.word_table import Text, aligned

# What stands in a folded text for each byte of a character of several bytes that is no letter, by
# what `fold` writes for it: bytes that are in no UTF-8. Letters stay as they are.
_STAND_INS = {OTHER: 0xF5, SPACE: 0xF6, NUMBER: 0xF7, NUMERIC: 0xF8}
# What stands for such letters where each character is one byte.
_LETTER_STAND_INS = {LETTER: 0x80, LONG_S: 0xF9}
DIVIDER = 0xFF
# The bytes of folded texts that are of each class in a rule: letters, numbers, spaces but for the
# next two classes, ' ', newlines, digits that only `Digits` knows, dividers of texts. All else is
# of class O.
CLASSES = {
    "L": b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    + bytes([*range(0x80, 0xF5), _LETTER_STAND_INS[LONG_S]]),
    "N": bytes([*b"0123456789", _STAND_INS[NUMBER]]),
    "S": bytes([*b"\t\v\f", _STAND_INS[SPACE]]),
    "P": b" ",
    "R": b"\r\n",
    "M": bytes([_STAND_INS[NUMERIC]]),
    "D": bytes([DIVIDER]),
}
IS_START, IS_RARE = 1, 2  # the bits of `marks`
_LETTER, _OTHER = 1, 2  # the bits of the first two joins, which every rule has for these classes
_SPACE = 8  # the bit of spaces, and of all that a run of them may end at
_DIVIDER = _SPACE  # its code, and that of all that is alone
# Of rules in which blanks join newlines: the low bits of newlines, and the least code of blanks.
_NEWLINE, _BLANK = 4 | _SPACE, _SPACE << 4
_APOSTROPHE = ord("'")
# Of a character, by its first byte or what stands for it: how many it has.
_SIZES = np.array([1] * 0xC0 + [2] * 0x20 + [3] * 0x10 + [4] * 5 + [1] * 11)
_DENSE = 8  # of so many bytes one begins what may be no letter
_STRIDE = 61  # of so many bytes one is looked at to tell
_FIRST_BYTE = -0x40  # as int8, the least byte that begins a character
_DIVIDER_POINT = 0xDCFF  # what Python decodes a divider to, which is in no UTF-8


class Cutter:
    """One rule as tables.

    The code of a class has four low bits, which of the joins it may be the right side of, and four
    high bits, which it may be the left side of. A folded text is one in which each byte tells of
    what class its character is.

    Attributes:
      rule: the rule.
      codes: bytes [256], the code of each byte of a folded text.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.codes = _codes(rule)
        self._codes = np.frombuffer(self.codes, np.uint8)
        self._letter = self.codes[ord("a")]
        ends, pairs = "stmd", ["re", "ve", "ll"]
        if rule.any_case:
            ends += "STMD"
            pairs += [f"{a}{b}" for a, b in itertools.product("rRvV", "eE")]
            pairs += [f"{a}{b}" for a, b in itertools.product("lL", "lL")]
        # By the two bytes that follow "'": how long a contraction it is.
        self._contraction = np.zeros(1 << 16, np.int8)
        for pair in pairs:
            self._contraction[ord(pair[0]) << 8 | ord(pair[1])] = 3
        for end in ends:
            self._contraction[ord(end) << 8 : (ord(end) + 1) << 8] = 2
        if rule.any_case:
            self._contraction[int.from_bytes(LONG_S_POINT.encode())] = 3
            long_s = _LETTER_STAND_INS[LONG_S]
            self._contraction[long_s << 8 : (long_s + 1) << 8] = 2

    def bounds(self, text: Text) -> np.ndarray:
        """int64: where words start in UTF-8 texts that stand between dividers, bytes of 0xFF.

        The last bound is where the last word ends. A divider is a word too. What stands before the
        first byte and after the last one is taken for a divider.
        """
        if _is_dense(text.bytes[: text.size]):
            return self._bounds_by_characters(text)
        at = np.flatnonzero(text.bytes - np.uint8(0xC0) < 0x3F)
        return self._bounds(text.bytes, text.room, _Characters(text.bytes, at))

    def _bounds_by_characters(self, text: Text) -> np.ndarray:
        """As `bounds`, by way of a text in which each character is one byte."""
        octets = text.bytes[: text.size + 1]  # and a divider, which is where the last word ends
        begins = np.flatnonzero(octets.view(np.int8) >= _FIRST_BYTE)
        folded = aligned(text.room.size >> 3).view(np.uint8)
        folded[: begins.size] = _folded(octets)
        octets = folded[: begins.size + 15]
        octets[begins.size :] = DIVIDER
        return begins.take(self._bounds(octets, folded, _Characters(octets, begins[:0])))

    def _bounds(
        self, octets: np.ndarray, folded: np.ndarray, characters: "_Characters"
    ) -> np.ndarray:
        """As `bounds`, of bytes with sixteen more behind; `folded` has room for more still."""
        if characters.at.size:
            folded = characters.fold(folded)
        marks = self._marks(folded, octets.size - 15)
        is_start = (marks & IS_START).view(bool)
        rare = np.flatnonzero(marks >= IS_RARE)
        if characters.at.size:
            self._mend_characters(characters, folded, is_start)
        if self.rule.contractions:
            is_contraction = octets.take(rare) == _APOSTROPHE
            self._mend_contractions(octets, folded, rare[is_contraction], is_start)
            rare = rare[~is_contraction]
        if self.rule.digits:
            self._mend_numbers(octets, characters, is_start)
        is_start[-1] = True
        bounds = np.flatnonzero(is_start)
        return self._mend_blank_lines(folded, rare, bounds) if rare.size else bounds

    def _marks(self, folded: np.ndarray, size: int) -> np.ndarray:
        """uint8 [size]: `marks` of a folded text of at least so many bytes."""
        codes = np.full(size + 4, _DIVIDER, np.uint8)
        codes[2:-2] = np.frombuffer(folded[:size].tobytes().translate(self.codes), np.uint8)
        return marks(self.rule, codes, folded[:size])

    def _codes_at(self, folded: np.ndarray, at: np.ndarray) -> np.ndarray:
        codes = self._codes.take(folded.take(at, mode="clip"))
        codes[at < 0] = _DIVIDER
        return codes

    def _mend_characters(
        self, characters: "_Characters", folded: np.ndarray, is_start: np.ndarray
    ) -> None:
        """Where characters have several bytes their neighbours are not one byte away.

        Letters join their like, and what follows them does not ask what they follow.
        """
        at, sizes = characters.at, characters.sizes
        ends, here = at + sizes, self._codes.take(characters.stand_ins)
        before, after = self._codes_at(folded, at - 1), self._codes_at(folded, ends)
        # What follows, and then themselves, who do not ask so far back: they are no letters.
        is_start[ends] = is_word_start(
            self.rule, before, here, after, self._codes_at(folded, ends + 1)
        )
        is_start[at] = is_word_start(self.rule, before, before, here, after)
        is_start[at + 1] = is_start[at + sizes // 2] = is_start[ends - 1] = False

    def _mend_contractions(
        self, octets: np.ndarray, folded: np.ndarray, at: np.ndarray, is_start: np.ndarray
    ) -> None:
        """Where a word starts with a contraction, letters after it start another.

        `at` are the places of "'" before letters.
        """
        at = at[is_start[at]]
        following = octets.take(at + 1).astype(np.intp) << 8 | octets.take(at + 2)
        lengths = self._contraction.take(following)
        is_contraction = lengths > 0
        at, lengths = at[is_contraction], lengths[is_contraction]
        is_start[at + 1] = False
        ends = at + lengths
        is_start[ends[(self._codes_at(folded, ends) & 15) == _LETTER]] = True

    def _mend_numbers(
        self, octets: np.ndarray, characters: "_Characters", is_start: np.ndarray
    ) -> None:
        """Of a run of numbers only every so manyth starts a word."""
        is_number = (octets - np.uint8(ord("0")) < 10) | (octets == _STAND_INS[NUMBER])
        is_number[characters.at] = characters.stand_ins == _STAND_INS[NUMBER]
        at = np.flatnonzero(is_number)
        index = np.arange(at.size)
        starts_run = np.ones(at.size, bool)
        np.not_equal(at[1:], at[:-1] + _SIZES.take(octets.take(at[:-1])), out=starts_run[1:])
        run_start = np.maximum.accumulate(np.where(starts_run, index, 0))
        is_start[at[(index - run_start) % self.rule.digits != 0]] = False

    def _mend_blank_lines(
        self, folded: np.ndarray, ends: np.ndarray, bounds: np.ndarray
    ) -> np.ndarray:
        """Without the starts after a newline from which only spaces lead to another newline.

        `ends` are the places of newlines after blanks. Newlines that follow a character of class O
        belong to its word, so that a start after them stays.
        """
        index = np.unique(np.searchsorted(bounds, ends, "right") - 1)
        at = bounds[index]
        is_newline = (self._codes_at(folded, at - 1) & 15) == _NEWLINE
        index = index[is_newline & (self._codes_at(folded, at) >= _BLANK)]
        if not index.size:
            return bounds
        word = bounds[index - 1]  # the one before
        first, second = self._codes_at(folded, word), self._codes_at(folded, word + 1)
        is_other = ((first & 15) == _OTHER) | ((first >= _BLANK) & ((second & 15) == _OTHER))
        return np.delete(bounds, index[~is_other])


def is_word_start(rule: Rule, back: Any, before: Any, here: Any, after: Any) -> Any:
    """bool: by the codes of two characters back, one back, itself and the next."""
    joins = (before >> 4) & here & (after | np.uint8(0xFF ^ _SPACE))
    if rule.one_other_before_letters:
        # Class O to where letters are, but not where the O itself goes on a word.
        joins |= (before >> 1) & here & (~back >> 5) & np.uint8(_LETTER)
    return (joins == 0) | (here == _DIVIDER)


def marks(rule: Rule, codes: Any, folded: Any) -> Any:
    """uint8: for each byte of a folded text IS_START, and IS_RARE where something may be mended.

    That is a newline after a blank, or "'" before a letter. Arrays are those of NumPy or JAX;
    `codes` are the bytes' codes with two more before and behind.
    """
    back, before, here, after = codes[:-4], codes[1:-3], codes[2:-2], codes[3:-1]
    found = is_word_start(rule, back, before, here, after).astype(np.uint8)
    if rule.contractions:
        is_rare = (folded == np.uint8(_APOSTROPHE)) & ((after & 15) == _LETTER)
        found |= is_rare.astype(np.uint8) << 1
    if rule.blanks_before_newline:
        is_rare = ((here & 15) == _NEWLINE) & (before >= _BLANK)
        found |= is_rare.astype(np.uint8) << 1
    return found


class _Characters:
    """The characters of several bytes in a text that are no letters.

    Attributes:
      at: int64, where each begins.
      sizes: int64, its bytes: 2, 3 or 4.
      stand_ins: uint8, what its bytes are in the folded text.
    """

    def __init__(self, octets: np.ndarray, at: np.ndarray) -> None:
        """Those of the characters at these places that are no letters."""
        first = octets.take(at)
        some = np.flatnonzero(_may_begin_others().take(first))
        at, first = at.take(some), first.take(some)
        points = (first & 0x1F).astype(np.intp) << 6 | octets.take(at + 1) & 0x3F
        for least, number, mask in ((0xE0, 2, 0x3FF), (0xF0, 3, 0x7FFF)):
            more = np.flatnonzero(first >= least)
            low = octets.take(at.take(more) + number) & 0x3F
            points[more] = (points.take(more) & mask) << 6 | low
        stand_ins = _stand_ins().take(points)
        others = np.flatnonzero(stand_ins)
        self.at, self.stand_ins = at.take(others), stand_ins.take(others)
        self.sizes = _SIZES.take(first.take(others))

    def fold(self, octets: np.ndarray) -> np.ndarray:
        """The text with what stands in for them, in an array that XLA need not copy."""
        folded = aligned(octets.size >> 3).view(np.uint8)
        folded[:] = octets
        ends = self.at + self.sizes
        for at in (self.at, self.at + 1, self.at + self.sizes // 2, ends - 1):
            folded[at] = self.stand_ins
        return folded


@functools.cache
def _stand_ins() -> np.ndarray:
    """uint8 [0x110000]: what stands in for each code point, 0 for letters."""
    table = np.zeros(256, np.uint8)
    table[[*map(ord, _STAND_INS)]] = [*_STAND_INS.values()]
    return table.take(classes())


def _is_dense(octets: np.ndarray) -> bool:
    """Whether it is sooner to make a byte of each character of UTF-8 than to mend its bytes."""
    sample = octets[::_STRIDE]
    return bool(np.count_nonzero(_may_begin_others().take(sample)) * _DENSE > sample.size)


def _folded(octets: np.ndarray) -> np.ndarray:
    """uint8: for each character of UTF-8, and each divider, a byte of its class."""
    text = octets.tobytes().decode(errors="surrogateescape")  # dividers become _DIVIDER_POINT
    return _folding().take(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"))


@functools.cache
def _folding() -> np.ndarray:
    """uint8 [0x110000]: ASCII, or what stands in for a character that is one byte."""
    table = np.arange(256, dtype=np.uint8)
    stand_ins = _STAND_INS | _LETTER_STAND_INS
    table[[*map(ord, stand_ins)]] = [*stand_ins.values()]
    table = table.take(classes())
    table[_DIVIDER_POINT] = DIVIDER
    return table


@functools.cache
def _may_begin_others() -> np.ndarray:
    """bool [256]: whether a character of several bytes that begins so may be no letter."""
    others = np.flatnonzero(_stand_ins())
    others = others[(others >= 0x80) & ((others < 0xD800) | (others > 0xDFFF))]
    others = others[np.diff(others >> 6, prepend=0) != 0]  # all 64 of a kind begin alike
    may = np.zeros(256, bool)
    may[[chr(point).encode()[0] for point in others]] = True
    return may


def _codes(rule: Rule) -> bytes:
    codes = []
    for byte in range(256):
        name = next((name for name, its in CLASSES.items() if byte in its), "O")
        if name == "M" and name not in rule.alone:
            name = "O"
        code = 0
        for bit, (members, after) in enumerate(rule.joins):
            code |= (name in members) << bit | (name in after) << bit + 4
        if name in rule.spaces:
            code |= _SPACE | _SPACE << 4
        elif name in "SPR":
            code |= _SPACE
        if name in rule.alone + "D":
            code = _DIVIDER
        codes.append(code)
    return bytes(codes)
