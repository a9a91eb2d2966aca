"""The files of a corpus, and what each of them is: lines of JSON, a table, or one text."""

import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence
from typing import Literal

from apr_jax.text.compressed import READERS, CorpusError

Kind = Literal["lines", "table", "text"]
_ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar"}


@dataclasses.dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
      path: the file.
      kind: "lines" of JSON, a Parquet "table", or one "text".
      compressed: whether its content has to be unpacked.
      size: bytes of the file.
    """

    path: pathlib.Path
    kind: Kind
    compressed: bool
    size: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files of a corpus, in order.

    Attributes:
      files: what is read.
      hidden: how many files and folders, of those below folders, are left out for being hidden.
    """

    files: list[Source]
    hidden: int = 0


def find_sources(paths: Sequence[str | os.PathLike[str]]) -> Sources:
    """The files that these paths stand for; a folder stands for all below it, sorted.

    Links are followed, to files and to folders. What is hidden, as `.git`, is taken only where
    `paths` name it.

    Raises:
      CorpusError: a path is missing, not a regular file, or of a kind that cannot be read; a
        folder is empty, or a link in it leads back to a folder above.
    """
    files: list[Source] = []
    hidden = 0
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            files.append(_source(path, named=True))
            continue
        found = sorted(_walk(path, ()))
        shown = [file for file in found if not _is_hidden(file)]
        if not shown:
            raise CorpusError(
                f"{path}: the folder holds no files{' but hidden ones' * bool(found)}"
            )
        files += map(_source, shown)
        hidden += len(found) - len(shown)
    return Sources(files, hidden)


def _is_hidden(path: pathlib.Path) -> bool:
    return path.name.startswith(".")


def _walk(folder: pathlib.Path, above: tuple[tuple[int, int], ...]) -> Iterator[pathlib.Path]:
    """The files below the folder, and the hidden folders, which are not gone into."""
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        raise CorpusError(f"{folder}: is a link that leads back to a folder above it: remove it")
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in entries:
        if entry.is_dir() and not _is_hidden(entry):
            yield from _walk(entry, (*above, identity))
        else:
            yield entry


def _source(path: pathlib.Path, *, named: bool = False) -> Source:
    try:
        status = path.stat()
    except OSError as error:
        raise CorpusError(f"{path}: no such file or folder") from error
    if not stat.S_ISREG(status.st_mode):
        raise CorpusError(f"{path}: is not a regular file; put the text into a file first")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in READERS
    inner = (suffixes[:-1] if compressed else suffixes)[-1:]
    if set(inner) & _ARCHIVES:
        raise CorpusError(f"{path}: {inner[0]} archives cannot be read: unpack it first")
    if inner == [".parquet"] and compressed:
        raise CorpusError(f"{path}: a compressed Parquet file cannot be read: unpack it first")
    if inner == [".json"] and (named or compressed):
        raise CorpusError(
            f"{path}: may be JSON lines, or one text: call JSON lines .jsonl, and put files that "
            "are one document each into a folder, unpacked"
        )
    kinds: dict[str, Kind] = {".jsonl": "lines", ".ndjson": "lines", ".parquet": "table"}
    kind = kinds.get(inner[0], "text") if inner else "text"
    return Source(path, kind, compressed, status.st_size)
