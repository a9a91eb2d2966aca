"""The rules that cut text into the words which merges may not cross, as the models' files say them.

A rule is known by its regular expression. That of the file is never run: Python's idea of letters,
numbers and spaces differs from that of HuggingFace `tokenizers`. Here each rule stands twice: as
the same expression over classes of characters (see `characters.fold`), the plain form that
`split` runs, and as what may join what, which `cutting.py` turns into array operations. Rules that
are not of that kind have the plain form alone.
"""

import dataclasses
import re

from apr_jax.text.characters import (
    COMBINING,
    LETTER,
    LONG_S,
    LOWER,
    NUMBER,
    NUMERIC,
    SPACE,
    UPPER,
    fold,
)

# As it stands in the tokenizer.json of Qwen2, Qwen2.5 and Qwen3.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As it stands in the tokenizer.json of Llama 3 to 3.3.
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# The same rule in other words: of GPT-4's tokenizer.json, made from tiktoken's cl100k_base of then.
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
# tiktoken's cl100k_base of today, which takes blanks and newlines at the end of a text for one
# word, in the words of `tokenizers`: there `{1,3}+` would be any number.
CL100K_PATTERN = LLAMA3_PATTERN.replace(r"|\s*[", r"|\s+\z|\s*[")
# tiktoken's o200k_base, and as it stands in the tokenizer.json of gpt-oss and Llama 4.
O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A word begins at every whitespace character and nowhere else (see compat.py).
WHITESPACE_PATTERN = r"\s\S*|\S+"

_L, _N, _S = f"A-Za-z{LETTER}{LONG_S}", f"0-9{NUMBER}", rf"\t-\r {SPACE}"
_ANY_CASE = rf"'(?:[sS{LONG_S}tTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_LOWER_CASE = r"'(?:[stmd]|re|ve|ll)"


def _qwen2(numbers: str, at_the_end: str = "") -> str:
    # Possessive repeats wherever giving back could not lead to a match: twice as fast.
    return (
        rf"{_ANY_CASE}|[^\r\n{_L}{_N}]?[{_L}]++|{numbers}| ?[^{_S}{_L}{_N}]++[\r\n]*+"
        rf"{at_the_end}|[{_S}]*[\r\n]++|[{_S}]+(?![^{_S}])|[{_S}]++"
    )


def _o200k() -> str:
    upper, lower = f"A-Z{UPPER}{LETTER}{COMBINING}", f"a-z{LOWER}{LONG_S}{LETTER}{COMBINING}"
    letters = f"{_L}{UPPER}{LOWER}"
    lead = rf"[^\r\n{letters}{_N}]?"
    return (
        rf"{lead}[{upper}]*[{lower}]+(?:{_ANY_CASE})?|{lead}[{upper}]+[{lower}]*+(?:{_ANY_CASE})?"
        rf"|[{_N}]{{1,3}}| ?[^{_S}{letters}{_N}]++[\r\n/]*+"
        rf"|[{_S}]*[\r\n]++|[{_S}]+(?![^{_S}])|[{_S}]++"
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule. A class is a letter: see `cutting.CLASSES`.

    Attributes:
      expression: the rule over folded text; its matches, joined, are the text.
      cased: whether `expression` is over text that was folded so.
      joins: empty if the rule is not of this kind. Else up to three pairs (classes, after): a
        character of `classes` that follows one of `after` goes on the word. Spaces are apart, as
        their next character matters too:
      spaces: the classes of which a run is one word but for its last character, which is left to
        what follows, if anything does.
      alone: classes that are always a word and that end a text for what stands before.
      one_other_before_letters: whether a character of class O that is alone leads letters.
      blanks_before_newline: whether spaces before a newline join it, and those before them.
      contractions: whether "'s" and the like are words, and any_case: in capitals too.
      breaks: where a long text may be cut into pieces: behind a blank or newline behind which one
        of these expressions matches, or before it if the expression has a group. A word starts
        there, and nothing on one side tells how the other side is cut.
      digits: the most numbers in a word, 0 where `joins` says it all.
    """

    expression: re.Pattern[str]
    joins: tuple[tuple[str, str], ...] = ()
    spaces: str = ""
    cased: bool = False
    alone: str = ""
    one_other_before_letters: bool = False
    blanks_before_newline: bool = False
    contractions: bool = True
    any_case: bool = False
    digits: int = 0
    # A blank after no space, or no space after a single newline.
    breaks: tuple[str, ...] = (r"(?<=\S )()", r"(?<=\S\n)(?=\S)")

    def split(self, text: str) -> list[str]:
        """The words of the text. Joined they are the text."""
        folded = fold(text, cased=self.cased)
        if folded is text:
            return self.expression.findall(text)
        words, end = [], 0
        for match in self.expression.findall(folded):
            start, end = end, end + len(match)
            words.append(text[start:end])
        return words


# Rules in which any newlines end a word.
_BREAKS = (r"(?<=\S )()", r"(?<=[\r\n])(?=\S)")


def _qwen2_like(numbers: str, digits: int) -> Rule:
    return Rule(
        expression=re.compile(_qwen2(numbers)),
        joins=(("L", "LSP"), ("O", "OP"), ("R", "ORSP")),
        spaces="SP",
        one_other_before_letters=True,
        blanks_before_newline=True,
        any_case=True,
        digits=digits,
        breaks=_BREAKS,
    )


PRETOKENIZERS = {
    "qwen2": _qwen2_like(f"[{_N}]", 0),
    "llama3": _qwen2_like(f"[{_N}]{{1,3}}+", 3),
    "cl100k": Rule(re.compile(_qwen2(f"[{_N}]{{1,3}}+", rf"|[{_S}]++\Z")), breaks=_BREAKS),
    # A slash after a newline may go on a word.
    "o200k": Rule(
        re.compile(_o200k()), cased=True, breaks=(r"(?<=\S )()", r"(?<=[\r\n])(?=[^\s/])")
    ),
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
        breaks=(r"(?<=\S )()",),
    ),
}
# Of two patterns of one rule the first is written.
PATTERNS = {
    QWEN2_PATTERN: "qwen2",
    LLAMA3_PATTERN: "llama3",
    GPT4_PATTERN: "llama3",
    CL100K_PATTERN: "cl100k",
    O200K_PATTERN: "o200k",
    WHITESPACE_PATTERN: "whitespace",
}
# The rules that a caller may name; "whitespace" is no model's.
NAMEABLE = tuple(name for name in PRETOKENIZERS if name != "whitespace")
