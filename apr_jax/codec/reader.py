"""Opening an `.apr` file: checked in the reference reader's order, then read lazily."""

import dataclasses
import functools
import mmap
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from apr_jax.codec import claims, dtypes, health, mislabel, quantised
from apr_jax.codec import metadata as metadata_lib
from apr_jax.codec.errors import (
    ClosedError,
    MetadataOutOfFile,
    NoSuchTensor,
    Oddity,
    Unreadable,
)
from apr_jax.codec.header import Header
from apr_jax.codec.index import TensorInfo, parse_index
from apr_jax.files import open_regular


def open_apr(path: str | os.PathLike[str], *, strict: bool = False) -> "AprFile":
    """Open an `.apr` file for reading; use as a context manager.

    The cost does not depend on the size of the tensors, unless `strict`, which reads the whole file
    once for its CRC.

    Raises:
      AprError: one class per defect, see `apr_jax.codec.errors`; with `strict` also each `Oddity`.
    """
    file = AprFile(path)
    if strict and file.problems:
        file.close()
        raise file.problems[0]
    return file


class AprFile:
    """An open `.apr` file: a memory map, and views on it.

    Arrays that `read` and views that `raw` gave out stay valid after `close`.

    Attributes:
      path: as given to `open_apr`.
      header: the first 64 bytes.
      metadata: the JSON object; null keys are left out, keys that writers always set are there.
      names: the tensors' names, ascending as UTF-8 bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self._data: memoryview | None = _map(path)
        self.header = Header.parse(self._data, path)
        self._spelt_metadata = metadata_lib.parse(
            _metadata_bytes(self._data, self.header, path), path
        )
        self.metadata: dict[str, Any] = metadata_lib.normalise(self._spelt_metadata)
        self._entries, self._index_end = parse_index(self._data, self.header, path)
        # Of equal names the first counts, as for the reference reader.
        self._infos = {entry.name: entry for entry in reversed(self._entries)}
        self.names = list(reversed(self._infos))

    @functools.cached_property
    def problems(self) -> list[Oddity]:
        """What is odd about the file, as exceptions that were not raised.

        The first access reads the whole file for its CRC.
        """
        return [
            *claims.oddities(self.metadata, self.path),
            *health.oddities(
                self._open(),
                self.header,
                self._spelt_metadata,
                self._entries,
                self._index_end,
                self.path,
            ),
            *mislabel.oddities(self).values(),
        ]

    def rename(self, names: Mapping[str, str]) -> None:
        """Let each tensor go by another name, from the old one to the new."""
        renamed = ((names[name], info) for name, info in self._infos.items())
        ordered = sorted(renamed, key=lambda item: item[0], reverse=True)
        self._infos = {name: dataclasses.replace(info, name=name) for name, info in ordered}
        self.names = list(reversed(self._infos))

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of one tensor.

        Raises:
          NoSuchTensor: the file has none of that name.
        """
        try:
            return self._infos[name]
        except KeyError:
            raise NoSuchTensor(
                self.path, f"is not among its {len(self._infos)} tensors", tensor=name
            ) from None

    def raw(self, name: str) -> memoryview:
        """The stored bytes of one tensor, read-only, without a copy.

        Raises:
          TensorOutOfFile: the file ends before the tensor does.
        """
        data, info = self._open(), self.info(name)
        if info.end > len(data):
            raise health.tensor_out_of_file(info, len(data), self.path)
        return data[info.start : info.end]

    def read(self, name: str, dtype: Any = None) -> np.ndarray:
        """One tensor in its own type, a read-only view without a copy; in `dtype` when given.

        Quantised tensors are decoded to float32, with the values of the format's reference reader:
        scales that are not finite count as zero, and so do the subnormal ones of Q4. Rows that are
        padded to whole blocks are read row by row, which that reader does not do.

        A tensor whose stored size is not its shape's is returned flat: as many elements as there
        are bytes for (none for the empty placeholder of a tied head).

        Raises:
          TensorOutOfFile: the file ends before the tensor does.
          ShapeTooLarge: NumPy has no arrays of this rank or extent.
        """
        info = self.info(name)
        native = dtypes.BY_NAME[info.dtype].numpy
        data = self.raw(name)
        if native is None:
            flat = quantised.decode(info.dtype, data, info.shape)
        else:
            flat = np.frombuffer(data[: len(data) // native.itemsize * native.itemsize], native)
        if dtype is not None and flat.dtype != dtype:
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                flat = flat.astype(dtype)
        return dtypes.shaped(flat, info.shape, self.path, name) if info.fits_shape else flat

    def close(self) -> None:
        """Let go of the file."""
        self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> memoryview:
        if self._data is None:
            raise ClosedError(self.path, "has been closed; read inside the with block")
        return self._data


def _map(path: str | os.PathLike[str]) -> memoryview:
    try:
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")  # what a memory map refuses
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror or error})") from error


def _metadata_bytes(data: memoryview, header: Header, path: str | os.PathLike[str]) -> bytes:
    end = header.metadata_offset + header.metadata_size
    if end > len(data):
        raise MetadataOutOfFile(
            path,
            f"metadata ends at byte {end:,}, the file at byte {len(data):,}; "
            "it is damaged or cut short, copy it again",
            offset=header.metadata_offset,
        )
    metadata_lib.require_size(header.metadata_size, path)
    return bytes(data[header.metadata_offset : end])
