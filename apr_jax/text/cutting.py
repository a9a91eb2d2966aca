"""Finding where words start, for any rule of `pretokenizers`, by operations on arrays of bytes.

Nothing is scanned. Whether a word starts at a character follows from the classes of the two
characters before it, of itself and of the next one, but for a few rare cases that are mended after:
contractions, blanks at the end of a line, and long numbers.
"""

import itertools

import numpy as np

from apr_jax.text.characters import (
    DIVIDER,
    LETTER,
    LONG_S,
    LONG_S_POINT,
    NUMBER,
    NUMERIC,
    SPACE,
    classes,
)
from apr_jax.text.pretokenizers import Rule

# What the classes in a rule stand for: letters, numbers, spaces but for the next two classes, ' ',
# newlines, digits that only `Digits` knows, dividers of texts. All else is of class O.
CLASSES = {
    "L": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + LETTER + LONG_S,
    "N": "0123456789" + NUMBER,
    "S": "\t\v\f" + SPACE,
    "P": " ",
    "R": "\r\n",
    "M": NUMERIC,
    "D": DIVIDER,
}
_LETTER, _OTHER = 1, 2  # the bits of the first two joins, which every rule has for these classes
_SPACE = 8  # the bit of spaces, and of all that a run of them may end at
# Of rules in which blanks join newlines: the low bits of newlines, and the least code of blanks.
_NEWLINE, _BLANK = 4 | _SPACE, _SPACE << 4
_APOSTROPHE = ord("'")
_BEFORE, _AFTER = 2, 4  # codes of dividers around those of a text
# Of a character, by its first byte: how many it has.
_SIZES = np.array([1] * 0xC0 + [2] * 0x20 + [3] * 0x10 + [4] * 0x10)


class Cutter:
    """One rule as tables.

    The code of a class has four low bits, which of the joins it may be the right side of, and four
    high bits, which it may be the left side of.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._codes = _codes(rule)
        self._letter = self._codes[ord("a")]
        ends, pairs = "stmd", ["re", "ve", "ll"]
        if rule.any_case:
            ends += "STMD"
            pairs += [f"{a}{b}" for a, b in itertools.product("rRvV", "eE")]
            pairs += [f"{a}{b}" for a, b in itertools.product("lL", "lL")]
        # By the two bytes that follow "'": how long a contraction it is.
        self._contraction = np.zeros(1 << 16, np.int8)
        for pair in pairs:
            self._contraction[ord(pair[0]) << 8 | ord(pair[1])] = 3
        if rule.any_case:
            self._contraction[int.from_bytes(LONG_S_POINT.encode())] = 3
        for end in ends:
            self._contraction[ord(end) << 8 : (ord(end) + 1) << 8] = 2

    def starts(self, data: bytes) -> np.ndarray:
        """int64: where words start in UTF-8 texts that stand between dividers, bytes of 0xFF.

        A divider is a word too. What stands before the first byte and after the last one is taken
        for a divider.
        """
        octets = np.frombuffer(data, np.uint8)
        codes = np.full(_BEFORE + len(data) + _AFTER, _SPACE, np.uint8)
        codes[_BEFORE:-_AFTER] = np.frombuffer(data.translate(self._codes), np.uint8)
        characters = _Characters(octets)
        if characters.at.size:
            self._code(characters, codes)
        # One more than there are bytes, of which nothing comes.
        is_start = self._is_start(codes[:-5], codes[1:-4], codes[2:-3], codes[3:-2])
        if characters.at.size:
            self._mend_characters(characters, codes[_BEFORE:], is_start)
        if self.rule.contractions:
            self._mend_contractions(octets, codes[_BEFORE:], is_start)
        if self.rule.digits:
            self._mend_numbers(octets, characters, is_start)
        starts = np.flatnonzero(is_start[:-1])
        if self.rule.blanks_before_newline:
            starts = _mend_blank_lines(codes[_BEFORE - 1 : -_AFTER], starts)
        return starts

    def _code(self, characters: "_Characters", codes: np.ndarray) -> None:
        """Give all bytes of the characters the code of their class."""
        of_class = np.frombuffer(self._codes, np.uint8).take(characters.classes)
        for number in range(4):
            more = characters.sizes > number
            codes[_BEFORE + number + characters.at[more]] = of_class[more]

    def _is_start(
        self, back: np.ndarray, before: np.ndarray, here: np.ndarray, after: np.ndarray
    ) -> np.ndarray:
        """bool: by two characters back, one back, itself and the next."""
        joins = before >> 4
        joins &= here
        joins &= after | np.uint8(0xFF ^ _SPACE)
        if self.rule.one_other_before_letters:
            leads = before >> 1  # class O to where letters are
            leads &= here
            # Not where the character of class O itself goes on a word.
            leads &= ~back >> 5
            leads &= _LETTER
            joins |= leads
        is_start = joins == 0
        is_start |= here == _SPACE  # dividers, and all that is alone
        return is_start

    def _mend_characters(
        self, characters: "_Characters", codes: np.ndarray, is_start: np.ndarray
    ) -> None:
        """Where characters have several bytes their neighbours' codes are not one byte away."""
        # Letters join their like, and what follows them does not ask what they follow.
        others = np.flatnonzero(codes.take(characters.at) != self._letter)
        at, sizes = characters.at.take(others), characters.sizes.take(others)
        ends = at + sizes
        before, here, after = codes[at - 1], codes.take(at), codes.take(ends)
        is_start[ends] = self._is_start(before, here, after, codes.take(ends + 1))
        is_start[at] = self._is_start(before, before, here, after)  # no letter asks further back
        is_start[at + 1] = is_start[at + sizes // 2] = is_start[ends - 1] = False

    def _mend_contractions(
        self, octets: np.ndarray, codes: np.ndarray, is_start: np.ndarray
    ) -> None:
        """Where a word starts with a contraction, letters after it start another."""
        may_be = octets == _APOSTROPHE
        may_be &= is_start[:-1]
        may_be &= codes[1 : len(octets) + 1] == self._letter
        at = np.flatnonzero(may_be)
        second = octets.take(at + 2, mode="clip") * (at + 2 < len(octets))
        following = octets.take(at + 1).astype(np.intp) << 8 | second
        lengths = self._contraction.take(following)
        is_contraction = lengths > 0
        at, lengths = at[is_contraction], lengths[is_contraction]
        is_start[at + 1] = False
        ends = at + lengths
        is_start[ends[(codes[ends] & 15) == _LETTER]] = True

    def _mend_numbers(
        self, octets: np.ndarray, characters: "_Characters", is_start: np.ndarray
    ) -> None:
        """Of a run of numbers only every so manyth starts a word."""
        is_number = octets - np.uint8(ord("0")) < 10
        is_number[characters.at] = characters.classes == ord(NUMBER)
        at = np.flatnonzero(is_number)
        index = np.arange(at.size)
        starts_run = np.ones(at.size, bool)
        np.not_equal(at[1:], at[:-1] + _SIZES.take(octets.take(at[:-1])), out=starts_run[1:])
        run_start = np.maximum.accumulate(np.where(starts_run, index, 0))
        is_start[at[(index - run_start) % self.rule.digits != 0]] = False


class _Characters:
    """The characters of several bytes in a text.

    Attributes:
      at: int64, where each begins.
      sizes: int64, its bytes: 2, 3 or 4.
      classes: uint8, what `fold` writes for it.
    """

    def __init__(self, octets: np.ndarray) -> None:
        self.at = np.flatnonzero(octets - np.uint8(0xC0) < 0x3F)
        first = octets.take(self.at)
        self.sizes = _SIZES.take(first)
        points = (first & 0x1F).astype(np.intp) << 6 | octets[self.at + 1] & 0x3F
        for number, mask in ((2, 0x3FF), (3, 0x7FFF)):
            more = np.flatnonzero(self.sizes > number)
            low = octets.take(self.at.take(more) + number) & 0x3F
            points[more] = (points.take(more) & mask) << 6 | low
        self.classes = classes().take(points)


def _mend_blank_lines(codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Without the starts after a newline from which only spaces lead to another newline.

    `codes` begins with one divider. Newlines that follow a character of class O belong to its
    word, so that a start after them stays.
    """
    is_newline = (codes & 15) == _NEWLINE
    is_end = is_newline[1:] & (codes[:-1] >= _BLANK)  # newlines after a blank
    ends = np.flatnonzero(is_end)
    if not ends.size:
        return starts
    index = np.unique(np.searchsorted(starts, ends, "right") - 1)
    at = starts[index] + 1  # in `codes`
    index = index[is_newline[at - 1] & (codes[at] >= _BLANK)]
    if not index.size:
        return starts
    word = starts[index - 1] + 1  # the one before
    first, second = codes[word], codes[word + 1]
    is_other = ((first & 15) == _OTHER) | ((first >= _BLANK) & ((second & 15) == _OTHER))
    return np.delete(starts, index[~is_other])




def _codes(rule: Rule) -> bytes:
    codes = []
    for byte in range(256):
        name = next((name for name, members in CLASSES.items() if chr(byte) in members), "O")
        if name == "M" and name not in rule.alone:
            name = "O"
        code = 0
        for bit, (classes, after) in enumerate(rule.joins):
            code |= (name in classes) << bit | (name in after) << bit + 4
        if name in rule.spaces:
            code |= _SPACE | _SPACE << 4
        elif name in "SPR":
            code |= _SPACE
        if name in rule.alone + "D":
            code = _SPACE
        codes.append(code)
    return bytes(codes)
