"""Writing an `.apr` file: whole or tensor by tensor, the same bytes either way.

The tensors' types and shapes are declared first. They fix the header, the index and every tensor's
place, so each tensor is written where it belongs whenever it comes, and memory holds one at a time.
"""

import contextlib
import dataclasses
import os
from collections.abc import Buffer, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np

from apr_jax.codec import crc, dtypes, health, quantised
from apr_jax.codec import metadata as metadata_lib
from apr_jax.codec.errors import (
    ClosedError,
    DuplicateName,
    MetadataError,
    NameTooLong,
    OutOfRange,
    RankTooHigh,
    TensorNotDeclared,
    TensorsMissing,
    UnsupportedDtype,
)
from apr_jax.codec.header import HEADER_BYTES, VERSION, Flags, Header, aligned
from apr_jax.codec.index import MAX_NAME_BYTES, MAX_RANK, TensorInfo, entry_bytes, pack_entry
from apr_jax.files import atomic_write, begin_writeback


class Declared(Protocol):
    """What a writer needs to know before the data: NumPy and JAX arrays and their specs have it."""

    @property
    def dtype(self) -> Any: ...

    @property
    def shape(self) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """The least that satisfies `Declared`. A `dtype` that is a string is a name of the format's."""

    dtype: np.dtype[Any] | str
    shape: tuple[int, ...]


def write_apr(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    *,
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Write a whole `.apr` file; the same input gives the same bytes.

    The file appears under its name only when complete; an older one stays until then.

    Args:
      path: where the file goes.
      tensors: the arrays by name.
      metadata: the JSON object; missing keys that every file has are filled in.
      dtypes: the quantised type of those tensors that are not to be stored in their own.

    Raises:
      AprError: a tensor or the metadata cannot be expressed; nothing has been written.
      WriteError: the operating system refused.
    """
    chosen = dtypes or {}
    if unknown := chosen.keys() - tensors.keys():
        raise TensorNotDeclared(path, "has a type but is not given", tensor=min(unknown))
    declared = {
        name: ArraySpec(chosen.get(name, array.dtype), array.shape)
        for name, array in tensors.items()
    }
    with AprWriter(path, declared, metadata) as writer:
        for name in sorted(tensors):
            writer.add(name, tensors[name])


class AprWriter:
    """Writes an `.apr` file one tensor at a time. A context manager.

    Leaving the `with` block completes the file and renames it into place; leaving it by an
    exception leaves no trace. Tensors may come in any order.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        declared: Mapping[str, Declared],
        metadata: Mapping[str, Any],
        *,
        check: Callable[[str], None] | None = None,
    ) -> None:
        """Lay out the file. Nothing is written yet.

        Args:
          path: where the file goes.
          declared: type and shape of each tensor that will be added.
          metadata: the JSON object; missing keys that every file has are filled in.
          check: is called with the path of the complete file before that gets its name, which it
            never does if this raises.

        Raises:
          AprError: a name, type, shape or metadata key that the format or its readers do not allow.
        """
        self._path, self._check = path, check
        self._metadata = metadata_lib.dump(metadata, path)
        index_offset = HEADER_BYTES + aligned(len(self._metadata))
        self._infos, data_offset, self._end = _layout(declared, index_offset, path)
        self._header = Header(
            version=VERSION,
            flags=Flags.LAYOUT_ROW_MAJOR,
            tensor_count=len(self._infos),
            metadata_offset=HEADER_BYTES,
            metadata_size=len(self._metadata),
            tensor_index_offset=index_offset,
            data_offset=data_offset,
            checksum=0,
        )
        self._file: BinaryIO | None = None
        self._crcs: dict[str, int] = {}  # of each tensor that was added, its padding included

    def replace_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Put in what is only known once the tensors were seen, such as their hashes.

        Args:
          metadata: takes as many bytes as that which the file was laid out for.

        Raises:
          MetadataError: it takes another number, or has a key that readers do not allow.
        """
        replaced = metadata_lib.dump(metadata, self._path)
        if len(replaced) != len(self._metadata):
            raise MetadataError(
                self._path,
                f"metadata takes {len(replaced):,} bytes, the file was laid out "
                f"for {len(self._metadata):,}",
            )
        self._metadata = replaced

    def add(self, name: str, array: np.ndarray) -> np.ndarray:
        """Write one declared tensor; one declared in a quantised type is encoded.

        Args:
          name: a declared tensor.
          array: of the declared type and shape; of any float type for a quantised tensor.

        Returns:
          The stored bytes, flat uint8, which tell what reading them back will give.

        Raises:
          TensorNotDeclared: the name was not declared, or with another type or shape.
          DuplicateName: it was added before.
          OutOfRange: a value that the quantised type cannot express.
        """
        info = self._expected(name)
        array = np.asarray(array)
        if array.shape != info.shape or not _stores(info.dtype, array.dtype):
            raise TensorNotDeclared(
                self._path,
                f"is {array.dtype} {list(array.shape)}, was declared as "
                f"{info.dtype} {list(info.shape)}",
                tensor=name,
            )
        stored = self._encoded(info, array)
        self._add(info, stored)
        return stored

    def add_raw(self, name: str, data: Buffer) -> None:
        """Write one declared tensor as it is stored, for instance blocks of a quantised type.

        Args:
          name: a declared tensor.
          data: contiguous bytes, as many as `Dtype.nbytes` of its declared shape.

        Raises:
          TensorNotDeclared: the name was not declared, or has another size.
          DuplicateName: it was added before.
        """
        info = self._expected(name)
        stored = np.frombuffer(data, np.uint8)
        if stored.size != info.nbytes:
            raise TensorNotDeclared(
                self._path,
                f"has {stored.size:,} bytes, declared as {info.dtype} {list(info.shape)} "
                f"it has {info.nbytes:,}",
                tensor=name,
            )
        self._add(info, stored)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(atomic_write(self._path))
            stack.push(self._finish)  # runs first, so its errors also discard the file
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        self._file = None

    def _encoded(self, info: TensorInfo, array: np.ndarray) -> np.ndarray:
        if dtypes.BY_NAME[info.dtype].numpy is not None:
            return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        try:
            return quantised.encode(info.dtype, array)
        except OverflowError as error:
            raise OutOfRange(
                self._path, f"{error}; store it in its own type", tensor=info.name
            ) from error

    def _expected(self, name: str) -> TensorInfo:
        info = self._infos.get(name)
        if info is None:
            raise TensorNotDeclared(self._path, "was not declared to the writer", tensor=name)
        if name in self._crcs:
            raise DuplicateName(self._path, "was added twice", tensor=name)
        return info

    def _add(self, info: TensorInfo, stored: np.ndarray) -> None:
        padding = bytes(aligned(info.nbytes) - info.nbytes)
        self._write(info.start, memoryview(stored))
        self._write(info.end, padding)
        self._crcs[info.name] = crc.crc32(padding, crc.crc32(stored))

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        if self._file is None:
            raise ClosedError(self._path, "the writer is not open; add tensors in its with block")
        self._file.seek(offset)
        self._file.write(data)
        begin_writeback(self._file, offset, len(data))

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if missing := self._infos.keys() - self._crcs:
            raise TensorsMissing(
                self._path,
                f"{len(missing)} of {len(self._infos)} declared tensors were never added, "
                f"the first is {min(missing)!r}",
            )
        index = b"".join(pack_entry(info) for info in self._infos.values())
        head = b"".join(_padded(part) for part in (self._header.pack(), self._metadata, index))
        self._write(0, head)
        footer = crc.crc32(head)
        for name, info in self._infos.items():  # as they lie in the file
            footer = crc.combine(footer, self._crcs[name], aligned(info.nbytes))
        self._write(self._end, footer.to_bytes(health.FOOTER_BYTES, "little"))
        if self._check is not None and self._file is not None:
            self._file.flush()
            self._check(self._file.name)


def _layout(
    declared: Mapping[str, Declared], index_offset: int, path: str | os.PathLike[str]
) -> tuple[dict[str, TensorInfo], int, int]:
    """Every tensor's entry in index order, where the data section starts and where it ends."""
    rows = {name: _row(name, declared[name], path) for name in sorted(declared)}
    shapes = {name: tuple(int(extent) for extent in declared[name].shape) for name in rows}
    index_bytes = sum(entry_bytes(name, len(shape)) for name, shape in shapes.items())
    data_offset = index_offset + aligned(index_bytes)
    infos: dict[str, TensorInfo] = {}
    offset = 0
    for name, row in rows.items():
        size = row.nbytes(shapes[name])
        infos[name] = TensorInfo(name, row.name, shapes[name], offset, size, data_offset + offset)
        offset += aligned(size)
    return infos, data_offset, data_offset + offset


def _row(name: str, declared: Declared, path: str | os.PathLike[str]) -> dtypes.Dtype:
    """The tensor's type, once its name and rank are known to be sound."""
    for oddity in health.unsafe_name(name, path):
        raise oddity
    if len(name.encode()) > MAX_NAME_BYTES:
        raise NameTooLong(path, f"the name has more than {MAX_NAME_BYTES} bytes", tensor=name)
    if len(declared.shape) > MAX_RANK:
        raise RankTooHigh(
            path,
            f"has {len(declared.shape)} axes, more than {MAX_RANK}; reshape it",
            tensor=name,
        )
    if isinstance(declared.dtype, str):
        row = dtypes.BY_NAME.get(declared.dtype)
    else:
        row = dtypes.BY_NUMPY.get(np.dtype(declared.dtype))
    if row is None:
        known = ", ".join(dtypes.BY_NAME)
        raise UnsupportedDtype(
            path, f"has type {declared.dtype}; .apr files hold {known}", tensor=name
        )
    return row


def _stores(dtype: str, given: np.dtype[Any]) -> bool:
    """Whether an array of type `given` can become a tensor of type `dtype`."""
    row = dtypes.BY_NUMPY.get(given)
    if dtypes.BY_NAME[dtype].numpy is None:
        return row is not None and row.name in dtypes.FLOATS
    return row is not None and row.name == dtype


def _padded(data: bytes) -> bytes:
    return data.ljust(aligned(len(data)), b"\0")
