"""A corpus cut into blocks of a few megabytes, and the documents in each.

Cutting is cheap and done in order by one process; reading a block, parsing among it, can be done
by any other. A block of a plain file is only a place in it.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

import numpy as np

from apr_jax.errors import counted
from apr_jax.text.compressed import Compressed, CorpusError
from apr_jax.text.parquet import read_column
from apr_jax.text.sources import Source

BLOCK = 8 << 20
_FILES = 1000  # in a block of small ones
_MOST = 1 << 30  # bytes of one document, which has to fit in memory many times over
_MARK = b"\xef\xbb\xbf"  # at the start of a file it only says that UTF-8 follows
BAD_NAMED = 100  # of the bad lines and files skipped, so many are named in reports


@dataclasses.dataclass(frozen=True)
class Lines:
    """Whole lines of a file of JSON: `data`, or where they stand in the plain file.

    `size` is what the file itself has of them: fewer bytes than `data` where it is compressed.
    """

    path: pathlib.Path
    is_first: bool
    size: int
    start: int = 0
    data: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """Texts of a table, one behind another as UTF-8; `offsets` says where each begins.

    Further rows, `nulls`, have no text. `size` is their share of the file's bytes.
    """

    path: pathlib.Path
    is_first: bool
    size: int
    data: bytes
    offsets: np.ndarray
    nulls: int


@dataclasses.dataclass(frozen=True)
class Texts:
    """Files that are one document each."""

    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        return sum(source.size for source in self.sources)


Block = Lines | Rows | Texts


@dataclasses.dataclass
class Contents:
    """What was in a block.

    Attributes:
      texts: the documents.
      count: lines, rows or files.
      skipped: those without a document, by reason.
      bad: those that are damaged: which of `count`, from 0, and why. A limit may cut the list.
    """

    texts: list[str] = dataclasses.field(default_factory=list)
    count: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list)


class Tally:
    """What has been read of a corpus so far; give it the blocks in order.

    Attributes:
      documents: how many there were.
      skipped: how much was left out: `blank` lines, lines or rows that have `no_field` with text,
        `hidden` files and folders, and `bad` lines or files, which are damaged.
      bad: the first hundred that were bad, with the reason.
    """

    def __init__(self, max_bad: int, hidden: int = 0) -> None:
        self._max_bad = max_bad
        self._before = 0  # lines or rows of the file in earlier blocks
        self.documents = 0
        self.skipped = collections.Counter(blank=0, no_field=0, hidden=hidden, bad=0)
        self.bad: list[str] = []

    def add(self, block: Block, contents: Contents, documents: int) -> None:
        """Count a block. Raises CorpusError when more is damaged than may be."""
        if not isinstance(block, Texts) and block.is_first:
            self._before = 0
        for index, reason in contents.bad:
            self.skipped["bad"] += 1
            place = _place(block, self._before, index)
            if self.skipped["bad"] > self._max_bad:
                raise CorpusError(
                    f"{place}: {reason}: mend it, or let --max_bad (now {self._max_bad}) skip it"
                )
            if len(self.bad) < BAD_NAMED:
                self.bad.append(f"{place}: {reason}")
        self.skipped.update(contents.skipped)
        self.documents += documents
        self._before += contents.count

    def require_some(self, files: int, content_field: str) -> None:
        """Raise CorpusError when there was no document."""
        if not self.documents:
            skipped = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
            raise CorpusError(
                f"no document in {counted(files, 'file')}: skipped {skipped} "
                f"(is the text in the field {content_field!r}?)"
            )


def cut(sources: Sequence[Source], content_field: str) -> Iterator[Block]:
    """The blocks of these files, in order."""
    texts: list[Source] = []
    for source in sources:
        if source.kind == "text":
            texts.append(source)
            if len(texts) < _FILES and sum(text.size for text in texts) < BLOCK:
                continue
        if texts:
            yield Texts(tuple(texts))
            texts = []
        if source.kind == "lines":
            yield from _compressed_lines(source) if source.compressed else _plain_lines(source)
        elif source.kind == "table":
            yield from _rows(source, content_field)
    if texts:
        yield Texts(tuple(texts))


def read(block: Block, content_field: str, most_bad: int) -> Contents:
    """The documents in a block; of what is damaged `most_bad` are named, one more than allowed."""
    contents = Contents()
    if isinstance(block, Lines):
        _read_lines(block, content_field, most_bad, contents)
    elif isinstance(block, Rows):
        _read_rows(block, contents)
    else:
        _read_texts(block, contents)
    del contents.bad[most_bad:]
    return contents


def _plain_lines(source: Source) -> Iterator[Lines]:
    start = 0
    with _opened(source.path) as file:
        while start < source.size:
            file.seek(min(start + BLOCK, source.size))
            tail = file.readline(_MOST) if start + BLOCK < source.size else b""
            if len(tail) == _MOST:
                raise _too_long(source.path)
            stop = min(start + BLOCK, source.size) + len(tail)
            yield Lines(source.path, start == 0, stop - start, start)
            start = stop


def _compressed_lines(source: Source) -> Iterator[Lines]:
    stream, told = Compressed(source.path), 0
    for number, data in enumerate(_whole_lines(stream, source.path)):
        size = stream.consumed - told
        yield Lines(source.path, number == 0, size, 0, data)
        told += size


def _whole_lines(pieces: Iterable[bytes], path: pathlib.Path) -> Iterator[bytes]:
    """The same bytes in larger pieces that end where lines do."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if end and size + end >= BLOCK:
            yield b"".join([*held, piece[:end]])
            held, size, piece = [], 0, piece[end:]
        elif size >= _MOST:
            raise _too_long(path)
        held.append(piece)
        size += len(piece)
    if size:
        yield b"".join(held)


def _rows(source: Source, content_field: str) -> Iterator[Rows]:
    data: list[bytes] = []
    offsets = [np.zeros(1, np.int64)]
    size = nulls = told = 0
    is_first = True
    for content, starts, missing, share in read_column(source.path, content_field):
        data.append(content)
        offsets.append(starts[1:] + size)
        size, nulls = size + len(content), nulls + missing
        if size >= BLOCK or share == 1:
            consumed = int(source.size * share) - told
            rows = np.concatenate(offsets)
            yield Rows(source.path, is_first, consumed, b"".join(data), rows, nulls)
            told, is_first = told + consumed, False
            data, offsets, size, nulls = [], [np.zeros(1, np.int64)], 0, 0


def _read_lines(block: Lines, field: str, most_bad: int, contents: Contents) -> None:
    data = block.data
    if data is None:
        with _opened(block.path) as file:
            file.seek(block.start)
            data = file.read(block.size)
    if block.is_first:
        data = data.removeprefix(_MARK)
    lines = data.split(b"\n")  # lines end at \n and nowhere else
    del data
    if not lines[-1]:
        lines.pop()
    contents.count = len(lines)
    blank = no_field = 0
    for index, line in enumerate(lines):
        try:
            value = _parse(line.decode())
            text = value.get(field) if isinstance(value, dict) else None
            if not isinstance(text, str):
                no_field += 1
                continue
            if not text.isascii():
                text.encode()  # which a lone surrogate, written as an escape, does not survive
            contents.texts.append(text)
        except UnicodeEncodeError as error:
            contents.bad.append((index, f"lone surrogate at character {error.start}"))
        except (ValueError, RecursionError) as error:
            if not line.strip():
                blank += 1
            elif len(contents.bad) < most_bad:
                contents.bad.append((index, f"not valid JSON ({_reason(error)})"))
    contents.skipped.update(blank=blank, no_field=no_field)


def _read_rows(block: Rows, contents: Contents) -> None:
    contents.count = len(block.offsets) - 1
    contents.skipped["no_field"] = block.nulls
    starts = block.offsets.tolist()
    for index, (start, stop) in enumerate(itertools.pairwise(starts)):
        _decode(block.data[start:stop], index, contents)


def _read_texts(block: Texts, contents: Contents) -> None:
    contents.count = len(block.sources)
    for index, source in enumerate(block.sources):
        data = _read_whole(source).removeprefix(_MARK)
        if b"\0" in data:
            contents.bad.append((index, f"not text (NUL at byte {data.index(0)})"))
        else:
            _decode(data, index, contents)


def _decode(data: bytes, index: int, contents: Contents) -> None:
    try:
        contents.texts.append(data.decode())
    except UnicodeDecodeError as error:
        contents.bad.append((index, f"not UTF-8 text ({error.reason} at byte {error.start})"))


def _read_whole(source: Source) -> bytes:
    if source.size > _MOST:
        raise _too_long(source.path)
    if not source.compressed:
        with _opened(source.path) as file:
            return file.read()
    pieces, size = [], 0
    for piece in Compressed(source.path):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST:
            raise _too_long(source.path)
    return b"".join(pieces)


def _opened(path: pathlib.Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error


def _too_long(path: pathlib.Path) -> CorpusError:
    return CorpusError(
        f"{path}: one document of more than {_MOST >> 30} GiB does not fit: cut it, or write JSONL"
    )


def _place(block: Block, before: int, index: int) -> str:
    if isinstance(block, Texts):
        return str(block.sources[index].path)
    if isinstance(block, Rows):
        return f"{block.path}: text {before + index + 1}"
    return f"{block.path}:{before + index + 1}"


def _reason(error: ValueError | RecursionError) -> str:
    """What is wrong with one line, which JSON's own messages take for a whole file."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"{error.reason} of UTF-8 at byte {error.start + 1}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Numbers are of no use here, and Python makes no int of more than 4,300 digits.
_DECODER: Any = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=float)


def _parse(line: str) -> Any:
    """What `_DECODER.decode` gives, in half the time where no blanks lie before a short value."""
    try:
        value, end = _DECODER.scan_once(line, 0)
    except StopIteration:
        return _DECODER.decode(line)
    return value if not line[end:].strip(" \t\r\n") else _DECODER.decode(line)
