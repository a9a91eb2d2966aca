"""Many texts, some of them in memory at a time."""

from collections.abc import Iterable, Iterator


def lots(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """The texts in order, in lists that end with the text by which they have so many characters."""
    lot: list[str] = []
    size = 0
    for text in texts:
        lot.append(text)
        size += len(text)
        if size >= characters:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot
