"""Many texts, some of them in memory at a time."""

from collections.abc import Iterable, Iterator, Sized


def lots[T: Sized](texts: Iterable[T], least: int) -> Iterator[list[T]]:
    """The texts in order, in lists that end with the text by which they have this size."""
    lot: list[T] = []
    size = 0
    for text in texts:
        lot.append(text)
        size += len(text)
        if size >= least:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot
