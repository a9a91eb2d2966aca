"""Reading a corpus: JSONL files, text files and folders of them, one document at a time."""

import collections
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

from apr_jax.errors import UserError

_NOT_YET = {".parquet", ".gz", ".zst", ".zip", ".bz2", ".xz"}
_BAD_NAMED = 100  # of the bad lines and files skipped, so many are named in reports


class CorpusError(UserError):
    """A corpus is missing, empty, or has lines or files that cannot be read."""


class Documents:
    """The documents of some files in order. Each iteration reads them anew.

    Attributes:
      count: documents that the last iteration has given.
      skipped: how much the last iteration left out, by reason: `blank` lines, lines that have
        `no_field` with text, and `bad` lines or files, which are damaged.
      bad: the first hundred that were bad, with the reason.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], content_field: str, max_bad: int):
        self._files = [file for path in paths for file in _files(pathlib.Path(path))]
        self._content_field, self._max_bad = content_field, max_bad
        self.count = 0
        self.skipped: collections.Counter[str] = collections.Counter()
        self.bad: list[str] = []

    def __iter__(self) -> Iterator[str]:
        self.skipped = collections.Counter(blank=0, no_field=0, bad=0)
        self.bad = []
        self.count = 0
        for path in self._files:
            for text in self._lines(path) if path.suffix.lower() == ".jsonl" else self._whole(path):
                self.count += 1
                yield text
        if not self.count:
            raise CorpusError(
                f"no document in {len(self._files)} files: skipped {dict(self.skipped)} "
                f"(is the text in the field {self._content_field!r}?)"
            )

    def _whole(self, path: pathlib.Path) -> Iterator[str]:
        try:
            yield _read(path).decode()
        except UnicodeDecodeError as error:
            self._skip_bad(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})")

    def _lines(self, path: pathlib.Path) -> Iterator[str]:
        try:
            with path.open("rb") as file:  # in binary, lines end at \n and nowhere else
                for number, line in enumerate(file, 1):
                    yield from self._line(f"{path}:{number}", line)
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error

    def _line(self, place: str, line: bytes) -> Iterator[str]:
        if not line.strip():
            self.skipped["blank"] += 1
            return
        try:
            value = json.loads(line.decode(), parse_constant=_refuse_constant)
            text = value.get(self._content_field) if isinstance(value, dict) else None
            if isinstance(text, str) and not text.isascii():
                text.encode()  # which a lone surrogate, written as an escape, does not survive
        except UnicodeEncodeError as error:
            self._skip_bad(f"{place}: lone surrogate at character {error.start}")
        except (ValueError, RecursionError) as error:
            self._skip_bad(f"{place}: not valid JSON ({error})")
        else:
            if isinstance(text, str):
                yield text
            else:
                self.skipped["no_field"] += 1

    def _skip_bad(self, what: str) -> None:
        self.skipped["bad"] += 1
        if self.skipped["bad"] > self._max_bad:
            raise CorpusError(f"{what}: mend it, or let --max_bad (now {self._max_bad}) skip it")
        if len(self.bad) < _BAD_NAMED:
            self.bad.append(what)


def read_documents(
    paths: Sequence[str | os.PathLike[str]], content_field: str = "content", max_bad: int = 0
) -> Documents:
    """The documents in these files and folders, in the order given.

    A `.jsonl` file holds one JSON object a line, and a document is the string in `content_field`.
    Any other file is one document of UTF-8 text. A folder stands for all files below it, sorted.

    Args:
      paths: files and folders.
      content_field: the key of the text in JSONL.
      max_bad: how many damaged lines and files may be skipped; one more is an error.

    Raises:
      CorpusError: a path is missing or of a kind not supported. While iterating: too much is
        damaged, or there is no document.
    """
    return Documents(paths, content_field, max_bad)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        if not files:
            raise CorpusError(f"{path}: the folder holds no files")
    elif path.is_file():
        files = [path]
    else:
        raise CorpusError(f"{path}: no such file or folder")
    for file in files:
        if file.suffix.lower() in _NOT_YET:
            raise CorpusError(f"{file}: {file.suffix} files cannot be read yet: give JSONL or text")
    return files


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
