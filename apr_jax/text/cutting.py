"""Finding where words start, for any rule of `pretokenizers`, by operations on arrays of bytes.

Nothing is scanned. Whether a word starts at a character follows from the classes of the two
characters before it, of itself and of the next one, but for a few rare cases that are mended after:
contractions, blanks at the end of a line, and long numbers.
"""

import itertools

import numpy as np

from apr_jax.text.characters import DIVIDER, LETTER, LONG_S, NUMBER, NUMERIC, SPACE
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
            ends += "STMD" + LONG_S
            pairs += [f"{a}{b}" for a, b in itertools.product("rRvV", "eE")]
            pairs += [f"{a}{b}" for a, b in itertools.product("lL", "lL")]
        # By the two bytes that follow "'": how long a contraction it is.
        self._contraction = np.zeros(1 << 16, np.int8)
        for pair in pairs:
            self._contraction[ord(pair[0]) << 8 | ord(pair[1])] = 3
        for end in ends:
            self._contraction[ord(end) << 8 : (ord(end) + 1) << 8] = 2

    def starts(self, folded: bytes) -> np.ndarray:
        """int64: where words start in folded texts that stand between dividers.

        A divider is a word too. What stands before the first byte and after the last one is taken
        for a divider.
        """
        size = len(folded)
        codes = np.full(size + 5, _SPACE, np.uint8)
        codes[2:-3] = np.frombuffer(folded.translate(self._codes), np.uint8)
        is_start = self._is_start(codes)
        if self.rule.contractions:
            self._mend_contractions(folded, codes[2:], is_start)
        if self.rule.digits:
            self._mend_numbers(folded, is_start)
        starts = np.flatnonzero(is_start)
        if self.rule.blanks_before_newline:
            starts = _mend_blank_lines(codes[1:-3], starts)
        return starts

    def _is_start(self, codes: np.ndarray) -> np.ndarray:
        """bool: by two characters back, one back, itself and the next, which `codes` has around."""
        before, here, after = codes[1:-4], codes[2:-3], codes[3:-2]
        joins = before >> 4
        joins &= here
        joins &= after | np.uint8(0xFF ^ _SPACE)
        if self.rule.one_other_before_letters:
            leads = before >> 1  # class O to where letters are
            leads &= here
            # Not where the character of class O itself goes on a word.
            leads &= ~codes[:-5] >> 5
            leads &= _LETTER
            joins |= leads
        is_start = joins == 0
        is_start |= here == _SPACE  # dividers, and all that is alone
        return is_start

    def _mend_contractions(self, folded: bytes, codes: np.ndarray, is_start: np.ndarray) -> None:
        """Where a word starts with a contraction, letters after it start another."""
        text = np.frombuffer(folded + b"\0\0", np.uint8)
        may_be = text[:-2] == _APOSTROPHE
        may_be &= is_start
        may_be &= codes[1 : len(folded) + 1] == self._letter
        at = np.flatnonzero(may_be)
        following = text.take(at + 1).astype(np.intp) << 8 | text.take(at + 2)
        lengths = self._contraction.take(following)
        is_contraction = lengths > 0
        at, lengths = at[is_contraction], lengths[is_contraction]
        is_start[at + 1] = False
        ends = at + lengths
        is_start[ends[(codes[ends] & 15) == _LETTER]] = True

    def _mend_numbers(self, folded: bytes, is_start: np.ndarray) -> None:
        """Of a run of numbers only every so manyth starts a word."""
        is_number = np.frombuffer(folded.translate(_IS_NUMBER), bool)
        at = np.flatnonzero(is_number)
        starts_run = np.ones(at.size, bool)
        np.not_equal(at[1:], at[:-1] + 1, out=starts_run[1:])
        run_start = np.maximum.accumulate(np.where(starts_run, at, 0))
        is_start[at[(at - run_start) % self.rule.digits != 0]] = False


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


_IS_NUMBER = bytes(chr(byte) in CLASSES["N"] for byte in range(256))


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
