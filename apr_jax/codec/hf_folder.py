"""Tensors of a HuggingFace folder or a safetensors file, read lazily one at a time."""

import dataclasses
import json
import mmap
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from apr_jax.codec import dtypes
from apr_jax.codec.errors import (
    ClosedError,
    InvalidJson,
    InvalidSafetensors,
    NoSuchTensor,
    ShardIndexError,
    UnknownFormat,
    Unreadable,
)
from apr_jax.errors import short
from apr_jax.files import open_regular, read_json

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LENGTH = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class HfTensor:
    """One tensor as a safetensors header describes it; `dtype` is its name there."""

    dtype: str
    shape: tuple[int, ...]


_Tensor = tuple[HfTensor, memoryview]
_NOTHING = memoryview(b"")


class HfFolder:
    """The tensors and the `config.json` of a HuggingFace checkpoint. A context manager.

    Attributes:
      path: the folder, or the safetensors file that was named.
      folder: where the tokenizer files are looked for.
      config_path: the `config.json`.
      names: the tensors' names, sorted.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
    ) -> None:
        """Check every shard, also against the index; no tensor is read yet.

        Args:
          path: the folder, or a safetensors file.
          config: the `config.json`; None takes the one in the folder.

        Raises:
          AprError: no safetensors there, a damaged one, or an index that does not fit them.
        """
        self.path = pathlib.Path(path)
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.config_path = self.folder / CONFIG if config is None else pathlib.Path(config)
        self._tensors = self._open_shards()
        self._closed = False
        self.names = sorted(self._tensors)

    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return _read_object(self.config_path)

    def rename(self, names: Mapping[str, str]) -> None:
        """Let each tensor go by another name, from the old one to the new."""
        self._tensors = {names[name]: tensor for name, tensor in self._tensors.items()}
        self.names = sorted(self._tensors)

    def info(self, name: str) -> HfTensor:
        """Type and shape of one tensor.

        Raises:
          NoSuchTensor: the folder has none of that name.
        """
        return self._tensor(name)[0]

    def read(self, name: str) -> np.ndarray:
        """One tensor in its own type, a read-only view without a copy.

        Raises:
          UnsupportedDtype: safetensors has types that `.apr` has not.
          ShapeTooLarge: NumPy has no arrays of this rank or extent.
        """
        info = self.info(name)
        row = dtypes.find(info.dtype, self.path, name)
        return dtypes.shaped(np.frombuffer(self.raw(name), row.numpy), info.shape, self.path, name)

    def raw(self, name: str) -> memoryview:
        """The stored bytes of one tensor, read-only, without a copy."""
        _, data = self._tensor(name)
        if self._closed:
            raise ClosedError(self.path, "has been closed; read inside the with block")
        return data

    def close(self) -> None:
        """Let go of every shard; views that were given out stay valid."""
        self._closed = True
        self._tensors = {name: (info, _NOTHING) for name, (info, _) in self._tensors.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tensor(self, name: str) -> _Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise NoSuchTensor(
                self.path, f"is not among its {len(self._tensors)} tensors", tensor=name
            ) from None

    def _open_shards(self) -> dict[str, _Tensor]:
        if not self.path.is_dir():
            return _open_file(self.path)
        single, index = self.path / SINGLE, self.path / INDEX
        if single.exists():
            return _open_file(single)
        if index.exists():
            return self._open_indexed(index)
        found = sorted(self.path.glob("*.safetensors"))
        if len(found) != 1:
            raise UnknownFormat(
                self.path,
                f"has neither {SINGLE} nor {INDEX}, and {len(found)} other safetensors files; "
                "convert the model to safetensors (pickled .bin files are not read)",
            )
        return _open_file(found[0])

    def _open_indexed(self, path: pathlib.Path) -> dict[str, _Tensor]:
        weight_map = _weight_map(path)
        files = {file: _open_file(self.path / file) for file in sorted(set(weight_map.values()))}
        for file, tensors in files.items():
            if unlisted := [name for name in tensors if weight_map.get(name) != file]:
                raise InvalidSafetensors(
                    self.path / file, f"is not placed here by {INDEX}", tensor=min(unlisted)
                )
        for name, file in weight_map.items():
            if name not in files[file]:
                raise ShardIndexError(path, f"is not in {file}, where it should be", tensor=name)
        return {name: files[file][name] for name, file in weight_map.items()}


def _open_file(path: pathlib.Path) -> dict[str, _Tensor]:
    """Every tensor of one file, which the package checks; it would copy what it reads itself."""
    try:
        open_regular(path).close()  # the package would wait for a pipe
        with safe_open(path, framework="numpy"), open_regular(path) as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise InvalidSafetensors(
            path, f"is not a sound safetensors file ({short(str(error))}); download it again"
        ) from error
    start = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    entries = json.loads(bytes(data[_LENGTH.size : start]))
    return {
        name: (
            HfTensor(entry["dtype"], tuple(entry["shape"])),
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InvalidJson(path, "is not a JSON object; take the model's own file")
    return value


def _weight_map(path: pathlib.Path) -> Mapping[str, str]:
    weight_map = _read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShardIndexError(path, "has no weight_map; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise ShardIndexError(
                path,
                f"is placed in {short(repr(file))}, not a plain name of a .safetensors file; "
                "mend the index",
                tensor=name,
            )
    return weight_map


def _is_plain(file: str) -> bool:
    """A plain name cannot leave the folder; the symbolic links of download caches still work."""
    return (
        file.endswith(".safetensors")
        and file.isprintable()
        and pathlib.PurePath(file).name == pathlib.PureWindowsPath(file).name == file
    )
