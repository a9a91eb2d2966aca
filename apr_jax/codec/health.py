"""What is odd about an `.apr` file that opens: found from its header, index and, last, its CRC."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apr_jax.codec import crc
from apr_jax.codec import metadata as metadata_lib
from apr_jax.codec.errors import (
    DuplicateName,
    FooterMismatch,
    FooterMissing,
    Misaligned,
    MisleadingFlags,
    Oddity,
    OddVersion,
    Overlap,
    SizeMismatch,
    TensorOutOfFile,
    TruncatedFile,
    UnsafeName,
)
from apr_jax.codec.header import ALIGNMENT, HEADER_BYTES, VERSION, Flags, Header, aligned
from apr_jax.codec.index import TensorInfo
from apr_jax.codec.qwen2 import HEAD
from apr_jax.errors import short

FOOTER_BYTES = 4

_Path = str | os.PathLike[str]


def oddities(
    data: memoryview,
    header: Header,
    metadata: Mapping[str, Any],
    entries: Sequence[TensorInfo],
    index_end: int,
    path: _Path,
) -> Iterator[Oddity]:
    """Everything odd, cheapest first: only the footer's CRC, at the end, reads the whole file."""
    yield from _header(header, path)
    yield from metadata_lib.aliases(metadata, path)
    for before, entry in itertools.pairwise(entries):
        if before.name == entry.name:
            yield DuplicateName(
                path, "stands twice in the index; the first counts", tensor=entry.name
            )
    for entry in entries:
        yield from _tensor(entry, len(data), path)
    yield from _overlaps(header, entries, index_end, path)
    yield from _end(data, header, entries, path)


def unsafe_name(name: str, path: _Path) -> Iterator[UnsafeName]:
    """The oddity of a name that could mislead a terminal or, used as a path, leave a folder."""
    if not name:
        yield UnsafeName(path, "the name is empty", tensor=name)
    elif not name.isprintable() or "\N{REPLACEMENT CHARACTER}" in name:
        yield UnsafeName(
            path, "the name has control or undecodable characters; rename it", tensor=name
        )
    elif name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        yield UnsafeName(path, "the name would leave a folder as a path; rename it", tensor=name)


def required_bytes(header: Header, entries: Sequence[TensorInfo]) -> int:
    """The least sound length of the file, without its footer."""
    ends = (entry.start + aligned(entry.nbytes) for entry in entries)
    return max((header.data_offset, *ends))


def _header(header: Header, path: _Path) -> Iterator[Oddity]:
    if header.version != VERSION:
        major, minor = header.version
        yield OddVersion(path, f"version is {major}.{minor}, read as 2.0", offset=4)
    claims = Flags(header.flags) & (Flags.LZ4_COMPRESSED | Flags.ZSTD_COMPRESSED | Flags.ENCRYPTED)
    if claims:
        names = " and ".join(flag.name or "" for flag in claims)
        yield MisleadingFlags(path, f"flags say {names}, but the file is plain", offset=6)


def _tensor(entry: TensorInfo, file_bytes: int, path: _Path) -> Iterator[Oddity]:
    yield from unsafe_name(entry.name, path)
    # Importers write a tied head as an entry of full shape without data.
    if not entry.fits_shape and not (entry.name == HEAD and entry.nbytes == 0):
        yield SizeMismatch(
            path,
            f"has {entry.nbytes:,} bytes, {entry.dtype} "
            f"{short(str(list(entry.shape)))} needs another size; its values are read flat",
            tensor=entry.name,
            offset=entry.start,
        )
    if entry.start % ALIGNMENT:
        yield Misaligned(
            path,
            f"starts off a multiple of {ALIGNMENT} bytes; write the file again",
            tensor=entry.name,
            offset=entry.start,
        )
    if entry.end > file_bytes:
        yield tensor_out_of_file(entry, file_bytes, path)


def tensor_out_of_file(entry: TensorInfo, file_bytes: int, path: _Path) -> TensorOutOfFile:
    """The defect of an entry whose bytes the file does not have."""
    return TensorOutOfFile(
        path,
        f"needs {entry.nbytes:,} bytes there, the file ends at byte {file_bytes:,}; "
        "it is damaged or cut short, copy it again",
        tensor=entry.name,
        offset=entry.start,
    )


def _overlaps(
    header: Header, entries: Sequence[TensorInfo], index_end: int, path: _Path
) -> Iterator[Oddity]:
    metadata_end = header.metadata_offset + header.metadata_size
    regions = [
        (0, HEADER_BYTES, "the header"),
        (header.metadata_offset, metadata_end, "the metadata"),
        (header.tensor_index_offset, index_end, "the tensor index"),
        *((e.start, e.end, f"tensor {short(repr(e.name))}") for e in entries),
    ]
    end, last = 0, ""
    for start, stop, what in sorted(region for region in regions if region[1] > region[0]):
        if start < end:
            yield Overlap(
                path, f"{what} shares bytes with {last}, which ends at byte {end:,}", offset=start
            )
        if stop > end:
            end, last = stop, what


def _end(
    data: memoryview, header: Header, entries: Sequence[TensorInfo], path: _Path
) -> Iterator[Oddity]:
    required = required_bytes(header, entries)
    if len(data) < required:
        # A tensor that lost bytes has been named already.
        if all(entry.end <= len(data) for entry in entries):
            yield TruncatedFile(
                path, f"has {len(data):,} bytes, its sections need {required:,}; copy it again"
            )
    elif len(data) < required + FOOTER_BYTES:
        yield FooterMissing(path, "has no CRC32 at its end, so damage cannot be noticed")
    else:
        end = len(data) - FOOTER_BYTES
        stored = int.from_bytes(data[end:], "little")
        computed = crc.crc32(data[:end])
        if stored != computed:
            yield FooterMismatch(
                path,
                f"footer has CRC32 {stored:#010x}, the file gives {computed:#010x}; "
                "its content has changed, copy it again",
                offset=end,
            )
