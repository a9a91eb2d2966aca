"""What HuggingFace `tokenizers` takes for a letter, a number, a space and a known mark.

Run as a program it writes apr_jax/text/unicode_tables.py anew:
  python tests/text/probe_unicode.py
The test beside it checks that the committed tables are what the installed version says.
"""

import pathlib
import sys
import textwrap
import unicodedata

import numpy as np
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CHARACTERS = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
_OUTPUT = pathlib.Path(__file__).parents[2] / "apr_jax" / "text" / "unicode_tables.py"


def matches(pattern: str) -> set[int]:
    """The code points that the one-character `pattern` matches."""
    # The marker must be a character that none of the patterns matches: it stays in place, so the
    # replaced text lines up with the original one.
    marker = "\ue000"
    replaced = normalizers.Replace(Regex(pattern), marker).normalize_str("".join(CHARACTERS))
    return {
        ord(before) for before, after in zip(CHARACTERS, replaced, strict=True) if before != after
    }


def digits() -> set[int]:
    """The code points that the pre-tokeniser `Digits` cuts out."""
    split = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("a".join(CHARACTERS))
    return {ord(word) for word, _ in split if len(word) == 1 and word != "a"}


def known_marks() -> set[int]:
    """The combining marks that the NFC of `tokenizers` sorts: fewer than Python knows."""
    nfc = normalizers.NFC().normalize_str
    marks = set()
    for character in CHARACTERS:
        # U+0334 has class 1, below all others; what has class 1 itself goes below U+0301 (230).
        match unicodedata.combining(character):
            case 0:
                continue
            case 1:
                test = f"?\u0301{character}"
            case _:
                test = f"?{character}\u0334"
        # One that decomposes is no mark itself: its parts are.
        if unicodedata.normalize("NFC", character) == character and nfc(test) != test:
            marks.add(ord(character))
    return marks


def known_compositions() -> set[int]:
    """The code points with a canonical decomposition that the NFC of `tokenizers` has too."""
    nfc = normalizers.NFC().normalize_str
    known = set()
    for character in CHARACTERS:
        decomposed = unicodedata.normalize("NFD", character)
        composed = unicodedata.normalize("NFC", character)
        if decomposed != character and nfc(character) == nfc(decomposed) == composed:
            known.add(ord(character))
    return known


def ranges(points: set[int]) -> list[tuple[int, int]]:
    """The points as closed ranges in ascending order."""
    sorted_points = np.array(sorted(points))
    breaks = np.flatnonzero(np.diff(sorted_points) != 1)
    starts = sorted_points[np.r_[0, breaks + 1]]
    ends = sorted_points[np.r_[breaks, len(sorted_points) - 1]]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def source() -> str:
    """The text of unicode_tables.py."""
    tables = {
        "LETTERS": ("\\p{L} in a pattern of `tokenizers`", matches(r"\p{L}")),
        "UPPER": ("[\\p{Lu}\\p{Lt}]", matches(r"[\p{Lu}\p{Lt}]")),
        "LOWER": ("\\p{Ll}", matches(r"\p{Ll}")),
        "COMBINING": ("\\p{M}", matches(r"\p{M}")),
        "NUMBERS": ("\\p{N}", matches(r"\p{N}")),
        "NUMERIC": ("what `Digits` cuts out beside \\p{N}", digits() - matches(r"\p{N}")),
        "SPACES": ("\\s", matches(r"\s")),
        "MARKS": ("combining marks that its NFC sorts", known_marks()),
        "COMPOSITIONS": ("characters whose decomposition its NFC knows", known_compositions()),
    }
    lines = [
        '"""Unicode as HuggingFace `tokenizers` knows it, which is not as Python does.',
        "",
        f"Written by tests/text/probe_unicode.py from tokenizers {tokenizers.__version__}; "
        "do not edit.",
        "Each table lists closed ranges of code points in hexadecimal.",
        '"""',
    ]
    for name, (meaning, points) in tables.items():
        words = " ".join(f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in ranges(points))
        lines += ["", f"# {meaning}", f'{name} = """', *textwrap.wrap(words, 99), '"""']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    _OUTPUT.write_text(source(), encoding="utf-8")
