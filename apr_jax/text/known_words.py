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
        if None in rows:
            learned = self._learn(
                {word: None for word, row in zip(words, rows, strict=True) if row is None}
            )
            rows = [
                learned[word] if row is None else row for word, row in zip(words, rows, strict=True)
            ]
        return rows  # type: ignore[return-value]

    def _learn(self, words: Iterable[str]) -> dict[str, bytes]:
        ids = self._encode([word.encode() for word in words])
        learned = dict(zip(words, map(row, ids), strict=True))
        if len(self._rows) > _WORDS:
            self._rows = {}
        self._rows.update((word, row) for word, row in learned.items() if len(word) <= _CHARACTERS)
        return learned


def row(ids: Sequence[int]) -> bytes:
    """The ids as the bytes of int32s."""
    return array.array("i", ids).tobytes()
