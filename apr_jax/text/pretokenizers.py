"""Cutting text into the words that merges may not cross, as the model's tokenizer did.

A pre-tokeniser is known by its regular expression. That of the file is never run: Python's idea of
letters, numbers and spaces differs from that of HuggingFace `tokenizers`. Ours is the same
expression over classes of characters (see `characters.fold`).
"""

import re
from collections.abc import Callable

from apr_jax.text.characters import LETTER, LONG_S, NUMBER, SPACE, fold

# As it stands in the tokenizer.json of Qwen2, Qwen2.5 and Qwen3.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A word begins at every whitespace character and nowhere else (see compat.py).
WHITESPACE_PATTERN = r"\s\S*|\S+"

_L, _N, _S = f"A-Za-z{LETTER}{LONG_S}", f"0-9{NUMBER}", rf"\t-\r {SPACE}"
# Possessive repeats wherever giving back could not lead to a match: twice as fast.
_QWEN2 = re.compile(
    rf"'(?:[sS{LONG_S}tTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
    rf"|[^\r\n{_L}{_N}]?[{_L}]++"
    rf"|[{_N}]"
    rf"| ?[^{_S}{_L}{_N}]++[\r\n]*+"
    rf"|[{_S}]*[\r\n]++"
    rf"|[{_S}]+(?![^{_S}])"
    rf"|[{_S}]++"
)
_WHITESPACE = re.compile(rf"[{_S}][^{_S}]*+|[^{_S}]++")


def qwen2(text: str) -> list[str]:
    """The words of the text by Qwen2's expression. Joined they are the text."""
    return _cut(_QWEN2, text)


def whitespace(text: str) -> list[str]:
    """The words of the text, each with the whitespace character before it."""
    return _cut(_WHITESPACE, text)


def _cut(pattern: re.Pattern[str], text: str) -> list[str]:
    folded = fold(text)
    if folded is text:
        return pattern.findall(text)
    return [text[match.start() : match.end()] for match in pattern.finditer(folded)]


PRETOKENIZERS: dict[str, Callable[[str], list[str]]] = {"qwen2": qwen2, "whitespace": whitespace}
# Those that a caller may name; "whitespace" is no model's.
NAMEABLE = tuple(name for name in PRETOKENIZERS if name != "whitespace")
PATTERNS = {QWEN2_PATTERN: "qwen2", WHITESPACE_PATTERN: "whitespace"}
