"""Tensors and keys of a GGUF file, read lazily through the `gguf` package."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any, Self

import gguf
import numpy as np
from gguf.quants import dequantize

from apr_jax.codec import dtypes, gguf_map, quantised
from apr_jax.codec.errors import ClosedError, InvalidGguf, NoSuchTensor, UnsupportedDtype
from apr_jax.codec.qwen2 import EMBEDDING, HEAD, Qwen2Config

# The largest models known have a thousand tensors, and vocabularies and merges near 2**19.
_MOST_ENTRIES = 1 << 16
_MOST_ELEMENTS = 1 << 21
_ARRAYS = ("tokenizer.", "general.")  # where arrays belong; another is no number, and refused
_LENGTH = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One tensor. `dtype` is the type in which it is read, `stored` GGUF's name of its own."""

    dtype: str
    shape: tuple[int, ...]
    stored: str


class GgufKeys:
    """The keys of an open GGUF file, of any architecture, with tensors or without.

    A context manager.

    Attributes:
      path: the file.
      keys: its keys with their values, but for the arrays of the tokenizer.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises InvalidGguf when the file is damaged, or not as the format has it."""
        self.path = pathlib.Path(path)
        self._reader: _Reader | None = _open(self.path)
        self.keys = {
            name: self._contents(name)
            for name, field in self._reader.fields.items()
            if field.types[0] != gguf.GGUFValueType.ARRAY or not name.startswith(_ARRAYS)
        }

    def array(self, key: str) -> list[Any] | None:
        """The array under a key, None if there is none.

        Raises:
          InvalidGguf: the key holds no array, or text that is not UTF-8.
        """
        field = self._open().fields.get(key)
        if field is None:
            return None
        if field.types[0] != gguf.GGUFValueType.ARRAY:
            raise InvalidGguf(self.path, f"{key} is no array; convert the model again")
        values = field.parts[field.data[0]]
        if field.types[1] != gguf.GGUFValueType.STRING:
            return values.tolist()
        try:
            return [text.decode() for text in _strings(memoryview(values.data))]
        except UnicodeDecodeError as error:
            raise InvalidGguf(self.path, f"{key} is not sound ({error})") from error

    def close(self) -> None:
        """Let go of the file. Arrays that were read stay valid."""
        self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> "_Reader":
        if self._reader is None:
            raise ClosedError(self.path, "has been closed; read inside the with block")
        return self._reader

    def _contents(self, key: str) -> Any:
        try:
            return self._open().fields[key].contents()
        except ValueError as error:
            raise InvalidGguf(self.path, f"{key!r} is not sound ({error})") from error


class GgufFile(GgufKeys):
    """An open GGUF file of a supported architecture: its keys and tensors.

    Names are HuggingFace's, shapes are [out, in], and the rows of q and k lie as HuggingFace has
    them. Types that `.apr` files cannot hold are read as float32.

    Attributes:
      names: the tensors' names, sorted.
      config: the configuration; the head is tied when none is stored.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read keys and places; no tensor is read yet.

        Raises:
          InvalidGguf: the file is damaged, or not as the format has it.
          ConfigError: another architecture, or an incomplete configuration.
        """
        super().__init__(path)
        self._tensors = self._named()
        self.names = sorted(self._tensors)
        if EMBEDDING not in self._tensors or not self.info(EMBEDDING).shape:
            raise InvalidGguf(self.path, "has no token_embd.weight; take a whole model's file")
        self.config: Qwen2Config = gguf_map.read_config(
            self.keys,
            self.info(EMBEDDING).shape[0],
            tied=HEAD not in self._tensors,
            source=str(self.path),
        )

    def info(self, name: str) -> GgufTensor:
        """Type and shape of one tensor.

        Raises:
          NoSuchTensor: the file has none of that name.
        """
        tensor = self._tensor(name)
        stored = tensor.tensor_type.name
        shape = tuple(int(extent) for extent in reversed(tensor.shape))
        return GgufTensor(stored if stored in dtypes.BY_NAME else "F32", shape, stored)

    def raw(self, name: str) -> np.ndarray:
        """The bytes of one tensor in the type of `info` and our order of rows, uint8 [n]."""
        info = self.info(name)
        if info.stored != info.dtype:
            rows = self.read(name)
        else:
            # Rows are coded one by one, so that those of blocks can change places as well.
            with self._fitting(name):
                rows = gguf_map.to_our_rows(name, self._rows(name), self.config)
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)

    def read(self, name: str) -> np.ndarray:
        """One tensor in the type of `info`; blocks are decoded to float32.

        Raises:
          UnsupportedDtype: the `gguf` package cannot decode the type.
          InvalidGguf: the tensor has no elements, or rows that no heads share out.
        """
        info, rows = self.info(name), self._rows(name)
        native = dtypes.BY_NAME[info.dtype].numpy
        if native is None:
            return quantised.decode(info.dtype, self.raw(name), info.shape).reshape(info.shape)
        with self._fitting(name):
            if info.stored == info.dtype:
                values = rows.view(native).reshape(info.shape)
            else:
                try:
                    values = dequantize(rows, self._tensor(name).tensor_type)
                except NotImplementedError as error:
                    raise UnsupportedDtype(
                        self.path, f"has type {info.stored}, which is not supported", tensor=name
                    ) from error
            return gguf_map.to_our_rows(name, values, self.config)

    def close(self) -> None:
        super().close()
        self._tensors = {}

    def _named(self) -> dict[str, gguf.ReaderTensor]:
        tensors: dict[str, gguf.ReaderTensor] = {}
        for tensor in self._open().tensors:
            name = gguf_map.our_name(tensor.name)
            if name in tensors:
                raise InvalidGguf(self.path, "stands twice; convert the model again", tensor=name)
            tensors[name] = tensor
        return tensors

    def _tensor(self, name: str) -> gguf.ReaderTensor:
        self._open()
        try:
            return self._tensors[name]
        except KeyError:
            raise NoSuchTensor(
                self.path, f"is not among its {len(self._tensors)} tensors", tensor=name
            ) from None

    @contextlib.contextmanager
    def _fitting(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, OverflowError) as error:
            raise InvalidGguf(
                self.path,
                f"has shape {list(self.info(name).shape)}, which no such tensor can have "
                f"({error}); convert the model again",
                tensor=name,
            ) from error

    def _rows(self, name: str) -> np.ndarray:
        """The stored tensor, not permuted: values, or for other types the bytes of each row."""
        return np.asarray(self._tensor(name).data)


class _Reader(gguf.GGUFReader):
    """The package's reader, held to the bytes that the file has and to sizes that fit in memory.

    Left alone it goes round loops as often as a count in the file says, and makes objects of each
    element. Here an array is one part: its numbers, or of strings the bytes with their lengths.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        end = int(offset) + int(count) * kind.itemsize
        if end > self.data.size:
            raise ValueError(
                f"byte {end:,} is needed, the file ends at {self.data.size:,}; copy it again"
            )
        # Slices of the package's memmap take five times as long.
        return np.frombuffer(self.data, kind, int(count), int(offset))

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0])
        count = self._get(orig_offs + 4, np.uint64)
        if count[0] > _MOST_ELEMENTS or kind == gguf.GGUFValueType.ARRAY:
            raise ValueError(f"an array of {count[0]:,} {kind.name} is not supported")
        start = orig_offs + 12
        if kind == gguf.GGUFValueType.STRING:
            texts = itertools.islice(_strings(memoryview(self.data)[start:]), int(count[0]))
            values = self._get(start, np.uint8, sum(_LENGTH.size + len(text) for text in texts))
        else:
            values = self._get(start, self.gguf_scalar_to_np[kind], count[0])
        return 12 + values.nbytes, [count, values], [1], [gguf.GGUFValueType.ARRAY, kind]

    def _build_fields(self, offs: int, count: int) -> int:
        if self.byte_order != "I":
            raise ValueError("big-endian files are not supported")
        if count > _MOST_ENTRIES:
            raise ValueError(f"{count:,} keys are too many")
        return super()._build_fields(offs, count)

    def _build_tensor_info(self, offs: int, count: int) -> Any:
        if count > _MOST_ENTRIES:
            raise ValueError(f"{count:,} tensors are too many")
        return super()._build_tensor_info(offs, count)


def _strings(data: memoryview) -> Iterator[bytes]:
    """The strings that lie in `data` back to back, each after its length.

    Raises:
      ValueError: the data ends before the last one does.
    """
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise ValueError("the file ends within a string; copy it again")
        end = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        if end > len(data):
            raise ValueError("the file ends within a string; copy it again")
        yield bytes(data[at + _LENGTH.size : end])
        at = end


def _open(path: pathlib.Path) -> _Reader:
    try:
        # Offsets near the end of uint64 would wrap around without a word.
        with np.errstate(all="raise"):
            reader = _Reader(path)
    # The package does not check: what a damaged file makes it trip over can be of any class.
    except Exception as error:
        raise InvalidGguf(path, f"is not a sound GGUF file ({error or type(error)})") from error
    places = sorted((t.data_offset, t.data_offset + t.n_bytes, t.name) for t in reader.tensors)
    for (_, end, before), (start, _, name) in itertools.pairwise(p for p in places if p[1] > p[0]):
        if start < end:
            raise InvalidGguf(path, f"shares bytes with {before!r}", tensor=name, offset=start)
    return reader
