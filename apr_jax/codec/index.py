"""The list of tensors in an `.apr` file: names, types, shapes and places."""

import dataclasses
import os
import struct

from apr_jax.codec import dtypes
from apr_jax.codec.errors import IndexOutOfFile, UnknownDtype, UnsortedIndex
from apr_jax.codec.header import Header
from apr_jax.errors import short

MAX_NAME_BYTES = 256
MAX_RANK = 8

_NAME_LENGTH = struct.Struct("<H")
_TYPE_AND_RANK = struct.Struct("<BB")
_PLACE = struct.Struct("<QQ")
_SMALLEST_ENTRY = _NAME_LENGTH.size + _TYPE_AND_RANK.size + _PLACE.size


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor as the index describes it.

    `offset` counts bytes from the start of the data section, as the file has it; `start` counts
    them from the start of the file. `nbytes` is the stored size, which may differ from what `shape`
    needs (then the file has a `SizeMismatch` problem).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    start: int

    @property
    def end(self) -> int:
        """The byte of the file after the tensor's last."""
        return self.start + self.nbytes

    @property
    def fits_shape(self) -> bool:
        """The stored size is what the shape and the type need."""
        return self.nbytes in dtypes.BY_NAME[self.dtype].sizes(self.shape)


def parse_index(
    data: memoryview, header: Header, path: str | os.PathLike[str]
) -> tuple[list[TensorInfo], int]:
    """The entries in file order, and the byte where they end. `data` is the whole file."""
    start = header.tensor_index_offset
    # Bounded before the loop: the count is whatever four bytes of the file say.
    if header.tensor_count * _SMALLEST_ENTRY > len(data) - start:
        raise IndexOutOfFile(
            path,
            f"{header.tensor_count:,} tensors cannot be listed in the {len(data):,} bytes "
            "of the file; it is damaged or cut short, copy it again",
            offset=start,
        )
    entries: list[TensorInfo] = []
    position = start
    for number in range(header.tensor_count):
        entry, end = _parse_entry(data, position, number, header.data_offset, path)
        if entries and entry.name < entries[-1].name:
            raise UnsortedIndex(
                path,
                f"stands after {short(repr(entries[-1].name))} though names must ascend; "
                "write it again",
                tensor=entry.name,
                offset=position,
            )
        entries.append(entry)
        position = end
    return entries, position


def entry_bytes(name: str, rank: int) -> int:
    """The length of the entry of a tensor of that name and rank."""
    return _SMALLEST_ENTRY + len(name.encode()) + 8 * rank


def pack_entry(info: TensorInfo) -> bytes:
    """The bytes of one entry."""
    name = info.name.encode()
    return b"".join(
        (
            _NAME_LENGTH.pack(len(name)),
            name,
            _TYPE_AND_RANK.pack(dtypes.BY_NAME[info.dtype].code, len(info.shape)),
            struct.pack(f"<{len(info.shape)}Q", *info.shape),
            _PLACE.pack(info.offset, info.nbytes),
        )
    )


def _parse_entry(
    data: memoryview, start: int, number: int, data_offset: int, path: str | os.PathLike[str]
) -> tuple[TensorInfo, int]:
    try:
        (length,) = _NAME_LENGTH.unpack_from(data, start)
        position = start + _NAME_LENGTH.size + length
        name = bytes(data[start + _NAME_LENGTH.size : position]).decode(errors="replace")
        code, rank = _TYPE_AND_RANK.unpack_from(data, position)
        shape = struct.unpack_from(f"<{rank}Q", data, position + _TYPE_AND_RANK.size)
        position += _TYPE_AND_RANK.size + 8 * rank
        offset, size = _PLACE.unpack_from(data, position)
    except struct.error as error:
        raise IndexOutOfFile(
            path,
            f"entry {number} of the tensor index reaches past the end of the file, "
            f"byte {len(data):,}; it is damaged or cut short, copy it again",
            offset=start,
        ) from error
    dtype = dtypes.BY_CODE.get(code)
    if dtype is None:
        raise UnknownDtype(path, f"has type code {code}, {_hint(code)}", tensor=name, offset=start)
    info = TensorInfo(name, dtype.name, shape, offset, size, data_offset + offset)
    return info, position + _PLACE.size


def _hint(code: int) -> str:
    if code == 2:
        return "which was BF16 until March 2026; import the model again with a newer writer"
    known = ", ".join(f"{row.code} {row.name}" for row in dtypes.DTYPES)
    return f"known are {known}"
