"""The documents of a corpus one by one: JSONL, Parquet and text files, and folders of them."""

import collections
import os
from collections.abc import Iterator, Sequence

from apr_jax.text import blocks
from apr_jax.text.sources import find_sources


class Documents:
    """The documents of some files in order. Each iteration reads them anew.

    Attributes:
      count: documents that the last iteration has given.
      skipped: how much the last iteration left out, see `blocks.Tally`.
      bad: the first hundred that were bad, with the reason.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], content_field: str, max_bad: int):
        self._sources = find_sources(paths)
        self._content_field, self._max_bad = content_field, max_bad
        self._tally = blocks.Tally(max_bad, self._sources.hidden)

    def __iter__(self) -> Iterator[str]:
        self._tally = tally = blocks.Tally(self._max_bad, self._sources.hidden)
        for block in blocks.cut(self._sources.files, self._content_field):
            contents = blocks.read(block, self._content_field, self._max_bad + 1)
            tally.add(block, contents, len(contents.texts))
            yield from contents.texts
        tally.require_some(len(self._sources.files), self._content_field)

    @property
    def count(self) -> int:
        return self._tally.documents

    @property
    def skipped(self) -> collections.Counter[str]:
        return self._tally.skipped

    @property
    def bad(self) -> list[str]:
        return self._tally.bad


def read_documents(
    paths: Sequence[str | os.PathLike[str]], content_field: str = "content", max_bad: int = 0
) -> Documents:
    """The documents in these files and folders, in the order given.

    A `.jsonl` or `.ndjson` file holds one JSON object a line, and a document is the string in
    `content_field`; a `.json` file that is named itself, or packed, could be that and is refused.
    A `.parquet` file has a document in each row of the column of that name. Any other file is one
    document of UTF-8 text without NUL. `.gz`, `.bz2`, `.xz` and `.zst` files are unpacked on the
    way. A folder stands for all files below it, sorted, but for hidden ones; links are followed. A
    byte order mark at the start of a file is left out.

    Args:
      paths: files and folders.
      content_field: the key of the text in JSONL, the column in Parquet.
      max_bad: how many damaged lines and files may be skipped; one more is an error.

    Raises:
      CorpusError: a path is missing or of a kind not supported. While iterating: too much is
        damaged, or there is no document.
    """
    return Documents(paths, content_field, max_bad)
