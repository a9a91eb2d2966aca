"""The first 64 bytes of an `.apr` file."""

import dataclasses
import enum
import os
import struct
import zlib
from typing import Self

from apr_jax.codec.errors import ChecksumMismatch, ColumnMajor, FileTooShort, InvalidMagic

MAGIC = b"APR\0"
HEADER_BYTES = 64
ALIGNMENT = 64
VERSION = (2, 0)

# Packed: the metadata offset at byte 12 is not aligned to its own eight bytes.
_FIELDS = struct.Struct("<4sBBHIQIQQ")
_CHECKSUM = struct.Struct("<I")


class Flags(enum.IntFlag):
    """The bits of the flags field that somebody interprets."""

    LZ4_COMPRESSED = 0x0001
    ZSTD_COMPRESSED = 0x0002
    ENCRYPTED = 0x0004
    LAYOUT_ROW_MAJOR = 0x0400
    LAYOUT_COLUMN_MAJOR = 0x0800


@dataclasses.dataclass(frozen=True)
class Header:
    """Where the sections lie. Offsets are in bytes from the start of the file."""

    version: tuple[int, int]
    flags: int
    tensor_count: int
    metadata_offset: int
    metadata_size: int
    tensor_index_offset: int
    data_offset: int
    checksum: int

    @classmethod
    def parse(cls, data: memoryview, path: str | os.PathLike[str]) -> Self:
        """Read and check the header at the start of `data`, the whole file."""
        if len(data) < HEADER_BYTES:
            raise FileTooShort(
                path, f"has {len(data)} bytes, a header alone has {HEADER_BYTES}; copy it again"
            )
        magic, *version, flags, count, metadata, size, index, start = _FIELDS.unpack_from(data)
        if magic != MAGIC:
            raise InvalidMagic(
                path, f"starts with {magic!r}, not {MAGIC!r}; this is not an APR v2 file"
            )
        (stored,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
        header = cls(
            version=(version[0], version[1]),
            flags=flags,
            tensor_count=count,
            metadata_offset=metadata,
            metadata_size=size,
            tensor_index_offset=index,
            data_offset=start,
            checksum=stored,
        )
        computed = _checksum(bytes(data[:HEADER_BYTES]))
        if computed != stored:
            raise ChecksumMismatch(
                path,
                f"header has checksum {stored:#010x}, its bytes give {computed:#010x}; "
                "the file is damaged, copy it again",
                offset=_FIELDS.size,
            )
        if header.flags & Flags.LAYOUT_COLUMN_MAJOR:
            raise ColumnMajor(
                path,
                "flags say column-major layout, which nothing supports; "
                "import the model again from its source",
                offset=6,
            )
        return header

    def pack(self) -> bytes:
        """The 64 bytes; the checksum is computed, whatever the field says."""
        fields = _FIELDS.pack(
            MAGIC,
            *self.version,
            self.flags,
            self.tensor_count,
            self.metadata_offset,
            self.metadata_size,
            self.tensor_index_offset,
            self.data_offset,
        ).ljust(HEADER_BYTES, b"\0")
        return sealed(fields)


def sealed(header: bytes) -> bytes:
    """The 64 bytes of a header with the checksum that they need."""
    end = _FIELDS.size + _CHECKSUM.size
    return header[: _FIELDS.size] + _CHECKSUM.pack(_checksum(header)) + header[end:]


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _checksum(header: bytes) -> int:
    """CRC32 of the header without the checksum's own four bytes: 60 bytes, not 64 with a hole."""
    return zlib.crc32(header[_FIELDS.size + _CHECKSUM.size :], zlib.crc32(header[: _FIELDS.size]))
