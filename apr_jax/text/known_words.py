"""Words that came before with their ids, for calls with little text."""

import array
from collections.abc import Callable, Iterable, Sequence

_WORDS = 1 << 16  # kept; beyond this all are forgotten
_CHARACTERS = 64  # longer words hardly ever come again


class KnownWords:
    """A dictionary from words to rows: their ids as the bytes of int32s."""

    def __init__(self, encode: Callable[[Sequence[bytes]], Iterable[list[int]]]) -> None:
        """With what gives the ids of each of several words, which are UTF-8."""
        self._encode = encode
        self._rows: dict[str, bytes] = {}

    def rows(self, words: Sequence[str]) -> list[bytes]:
        """The row of each word."""
        rows = [*map(self._rows.get, words)]
        if not all(rows):  # far quicker than to look for None; words without ids may come again
            self._learn(words, rows)
        return rows  # type: ignore[return-value]

    def _learn(self, words: Sequence[str], rows: list[bytes | None]) -> None:
        """Fill in the rows that are not known."""
        if len(self._rows) > _WORDS:
            self._rows = {}
        new = [number for number, row in enumerate(rows) if not row]
        ids = self._encode([words[number].encode() for number in new])
        for number, word_ids in zip(new, ids, strict=True):
            rows[number] = known = row(word_ids)
            if len(words[number]) <= _CHARACTERS:
                self._rows[words[number]] = known


def row(ids: Sequence[int]) -> bytes:
    """The ids as the bytes of int32s."""
    return array.array("i", ids).tobytes()
