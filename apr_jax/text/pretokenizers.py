"""The rules that cut text into the words which merges may not cross, as the models' files say them.

A rule is known by its regular expression. That of the file is never run: Python's idea of letters,
numbers and spaces differs from that of HuggingFace `tokenizers`. Here each rule stands twice: as
the same expression over classes of characters (see `characters.fold`), the plain form that
`split` runs, and as what may join what, which `cutting.py` turns into array operations.
"""

import dataclasses
import re

from apr_jax.text.characters import LETTER, LONG_S, NUMBER, NUMERIC, SPACE, fold

# As it stands in the tokenizer.json of Qwen2, Qwen2.5 and Qwen3.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As it stands in the tokenizer.json of Llama 3 to 3.3.
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# A word begins at every whitespace character and nowhere else (see compat.py).
WHITESPACE_PATTERN = r"\s\S*|\S+"

_L, _N, _S = f"A-Za-z{LETTER}{LONG_S}", f"0-9{NUMBER}", rf"\t-\r {SPACE}"
_ANY_CASE = rf"'(?:[sS{LONG_S}tTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_LOWER_CASE = r"'(?:[stmd]|re|ve|ll)"


def _qwen2(numbers: str) -> str:
    # Possessive repeats wherever giving back could not lead to a match: twice as fast.
    return (
        rf"{_ANY_CASE}|[^\r\n{_L}{_N}]?[{_L}]++|{numbers}| ?[^{_S}{_L}{_N}]++[\r\n]*+"
        rf"|[{_S}]*[\r\n]++|[{_S}]+(?![^{_S}])|[{_S}]++"
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule. A class is a letter: see `cutting.CLASSES`.

    Attributes:
      expression: the rule over folded text; its matches, joined, are the text.
      joins: up to three pairs (classes, after): a character of `classes` that follows one of
        `after` goes on the word. Spaces are apart, as their next character matters too:
      spaces: the classes of which a run is one word but for its last character, which is left to
        what follows, if anything does.
      alone: classes that are always a word and that end a text for what stands before.
      one_other_before_letters: whether a character of class O that is alone leads letters.
      blanks_before_newline: whether spaces before a newline join it, and those before them.
      contractions: whether "'s" and the like are words, and any_case: in capitals too.
      breaks: where a long text may be cut into pieces: a word starts there, and nothing on one side
        tells how the other side is cut.
      digits: the most numbers in a word, 0 where `joins` says it all.
    """

    expression: re.Pattern[str]
    joins: tuple[tuple[str, str], ...]
    spaces: str
    alone: str = ""
    one_other_before_letters: bool = False
    blanks_before_newline: bool = False
    contractions: bool = True
    any_case: bool = False
    digits: int = 0
    # A space after none, or no space after a single newline.
    breaks: str = r"(?<=\S) |(?<=\S\n)\S"

    def split(self, text: str) -> list[str]:
        """The words of the text. Joined they are the text."""
        folded = fold(text)
        if folded is text:
            return self.expression.findall(text)
        words, end = [], 0
        for match in self.expression.findall(folded):
            start, end = end, end + len(match)
            words.append(text[start:end])
        return words


def _qwen2_like(numbers: str, digits: int) -> Rule:
    return Rule(
        expression=re.compile(_qwen2(numbers)),
        joins=(("L", "LSP"), ("O", "OP"), ("R", "ORSP")),
        spaces="SP",
        one_other_before_letters=True,
        blanks_before_newline=True,
        any_case=True,
        digits=digits,
    )


PRETOKENIZERS = {
    "qwen2": _qwen2_like(f"[{_N}]", 0),
    "llama3": _qwen2_like(f"[{_N}]{{1,3}}+", 3),
    # The expression that HuggingFace's ByteLevel has built in.
    "gpt2": Rule(
        expression=re.compile(
            rf"{_LOWER_CASE}| ?[{_L}]++| ?[{_N}]++| ?[^{_S}{_L}{_N}]++|[{_S}]+(?![^{_S}])|[{_S}]++"
        ),
        joins=(("L", "LP"), ("O", "OP"), ("N", "NP")),
        spaces="SPR",
    ),
    # The same between single digits, which are cut out first.
    "smollm2": Rule(
        expression=re.compile(
            rf"[{_N}{NUMERIC}]|{_LOWER_CASE}| ?[{_L}]++| ?[^{_S}{_L}{_N}{NUMERIC}]++"
            rf"|[{_S}]+(?![^{_S}{_N}{NUMERIC}])|[{_S}]++"
        ),
        joins=(("L", "LP"), ("O", "OP")),
        spaces="SPR",
        alone="NM",
    ),
    "whitespace": Rule(
        expression=re.compile(rf"[{_S}][^{_S}]*+|[^{_S}]++"),
        joins=(("L", "LNOSPR"), ("O", "LNOSPR"), ("N", "LNOSPR")),
        spaces="",
        contractions=False,
        breaks=r"(?<=\S) ",
    ),
}
PATTERNS = {QWEN2_PATTERN: "qwen2", LLAMA3_PATTERN: "llama3", WHITESPACE_PATTERN: "whitespace"}
# The rules that a caller may name; "whitespace" is no model's.
NAMEABLE = tuple(name for name in PRETOKENIZERS if name != "whitespace")
