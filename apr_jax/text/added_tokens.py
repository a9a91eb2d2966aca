"""Tokens that are found in a text before it is cut into words, such as `<|endoftext|>`."""

import re
from collections.abc import Sequence

from apr_jax.text.vocabulary import AddedToken


class AddedTokens:
    """The added tokens of a vocabulary.

    Attributes:
      ids: the id of each spelling.
    """

    def __init__(self, tokens: Sequence[AddedToken], *, are_found: bool) -> None:
        """With `are_found` false the text of a token is text like any other."""
        self.ids = {token.content: token.id for token in tokens}
        self._pattern: re.Pattern[str] | None = None
        if not are_found or not self.ids:
            return
        longest_first = sorted(self.ids, key=len, reverse=True)
        # Names that begin alike are found much faster when the pattern says so.
        first = longest_first[0][0] if len({name[0] for name in longest_first}) == 1 else ""
        ends = "|".join(re.escape(name[len(first) :]) for name in longest_first)
        self._pattern = re.compile(f"({re.escape(first)}(?:{ends}))")
        self._first, self._heads = first, tuple({name[:2] for name in longest_first})

    def split(self, text: str) -> list[str]:
        """Alternately what lies between added tokens, and one of them."""
        if self._pattern is None:
            return [text]
        if self._first:
            # Python finds single characters, unless there are many, far faster than patterns.
            at = -1
            for _ in range(1 + (len(text) >> 9)):
                at = text.find(self._first, at + 1)
                if at < 0:
                    return [text]
                if text.startswith(self._heads, at):
                    break
        return self._pattern.split(text)
