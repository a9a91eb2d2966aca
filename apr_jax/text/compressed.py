"""Compressed files as a stream of bytes, a piece at a time, whatever their size."""

import bz2
import gzip
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from apr_jax.errors import UserError

_PIECE = 1 << 22
# What is fed to zstd at once: a hostile file makes at most 128 MiB of so few bytes.
_FEED = 1 << 12
_WINDOW = 1 << 31  # the largest of the format, as `zstd --long=31` writes

_Reader = Callable[[BinaryIO], Iterator[bytes]]


class CorpusError(UserError):
    """A corpus is missing, empty, or has lines or files that cannot be read."""


class Compressed:
    """The content of a compressed file; iterate to get it in pieces of some megabytes.

    Attributes:
      consumed: bytes of the file itself that have been read so far.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self.consumed = 0

    def __iter__(self) -> Iterator[bytes]:
        """Raises CorpusError when the file cannot be read, is damaged or ends too early."""
        try:
            with self._path.open("rb") as file:
                for piece in READERS[self._path.suffix.lower()](file):
                    self.consumed = file.tell()
                    yield piece
                self.consumed = file.tell()
        except (EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            raise self._damaged(error) from error
        except OSError as error:
            if error.errno is None:  # raised by a reader, not by the system
                raise self._damaged(error) from error
            raise CorpusError(f"{self._path}: cannot be read ({error.strerror})") from error

    def _damaged(self, reason: object) -> CorpusError:
        return CorpusError(f"{self._path}: cannot be unpacked ({reason}): copy it again")


def _by(open_: Callable[[BinaryIO], Any]) -> _Reader:
    def read(file: BinaryIO) -> Iterator[bytes]:
        with open_(file) as content:
            while piece := content.read(_PIECE):
                yield piece

    return read


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    frames = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    frame, fed, pieces, size = frames.decompressobj(), False, [], 0
    while data := file.read(_FEED):
        while data:
            pieces.append(frame.decompress(data))
            size += len(pieces[-1])
            data, fed = b"", True
            if frame.eof:  # another frame may follow
                data, fed, frame = frame.unused_data, False, frames.decompressobj()
        if size >= _PIECE:
            yield b"".join(pieces)
            pieces, size = [], 0
    if fed:
        raise EOFError("it ends in the middle of a frame")
    if size:
        yield b"".join(pieces)


# By suffix. Python's own readers notice a file that ends too early by themselves.
READERS: dict[str, _Reader] = {
    ".gz": _by(lambda file: gzip.GzipFile(fileobj=file)),
    ".bz2": _by(lambda file: bz2.BZ2File(file)),
    ".xz": _by(lambda file: lzma.LZMAFile(file)),
    ".zst": _zstd,
}
