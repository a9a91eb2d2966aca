"""Rows of different lengths in flat arrays."""

import numpy as np

_STEPS = np.arange(1 << 18)  # made once, as it takes as long as what is done with it


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: the positions of the ranges [start, start + length), one range behind another."""
    ends = np.cumsum(lengths)
    size = int(ends[-1]) if ends.size else 0
    places = np.repeat(starts - ends + lengths, lengths)
    places += _STEPS[:size] if size <= len(_STEPS) else np.arange(size)
    return places


class Column:
    """An array that grows at its end, of values or of rows of `width` values."""

    def __init__(self, dtype: type[np.generic], width: int | None = None) -> None:
        self._room = np.empty(1024 if width is None else (1024, width), dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> np.ndarray:
        """A view, good until the next change."""
        return self._room[: self._size]

    def append(self, values: np.ndarray) -> None:
        size = self._size + len(values)
        if size > len(self._room):
            room = np.empty(
                (max(size, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype
            )
            room[: self._size] = self.values
            self._room = room
        self._room[self._size : size] = values
        self._size = size

    def shorten(self, size: int) -> None:
        """Keep the first `size` entries."""
        self._size = size


class Rows:
    """Rows of values that are added, and taken away, at the end."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self.starts, self.lengths, self.values = Column(np.int64), Column(np.int64), Column(dtype)

    def __len__(self) -> int:
        return len(self.starts)

    def append(self, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Add rows that lie one behind another. Returns their numbers (int64)."""
        first, begin = len(self.starts), len(self.values)
        self.starts.append(begin + np.cumsum(lengths) - lengths)
        self.lengths.append(lengths)
        self.values.append(values)
        return np.arange(first, first + len(lengths))

    def shorten(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        if rows < len(self):
            self.values.shorten(int(self.starts.values[rows]))
            self.starts.shorten(rows)
            self.lengths.shorten(rows)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of these rows one behind another, and the length of each."""
        lengths = self.lengths.values.take(rows)
        return self.values.values.take(spans(self.starts.values.take(rows), lengths)), lengths
