"""One view of a model's checkpoint, whatever its format: configuration, names, arrays."""

import functools
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from apr_jax.codec import dtypes, folders, head
from apr_jax.codec.errors import (
    IncompleteModel,
    NoSuchTensor,
    Oddity,
    OutOfRange,
    SizeMismatch,
    UnknownFormat,
    Unreadable,
    UnsupportedDtype,
)
from apr_jax.codec.header import MAGIC
from apr_jax.codec.hf_folder import CONFIG, HfFolder
from apr_jax.codec.qwen2 import EMBEDDING, HEAD, Coverage, Qwen2Config, coverage
from apr_jax.codec.reader import AprFile, open_apr


def open_checkpoint(
    path: str | os.PathLike[str], *, strict: bool = False, dtype: Any = None
) -> "Checkpoint":
    """Open a Qwen2 checkpoint: an `.apr` file, a HuggingFace folder, or a safetensors file.

    Whether the head is tied is decided here. For `.apr` the tensors decide, which compares head and
    embedding where both are stored; for HuggingFace `config.json` does, and a stored head must not
    contradict it.

    Args:
      path: the file or folder.
      strict: refuse the oddities of an `.apr` file.
      dtype: the type in which every tensor is to be read; None leaves each in its own.

    Raises:
      AprError: the file is not readable or contradicts itself.
      ConfigError: the configuration is incomplete or not plain Qwen2.
    """
    source = _open_source(pathlib.Path(path))
    try:
        checkpoint = Checkpoint(source, dtype)
        if strict and checkpoint.problems:
            raise checkpoint.problems[0]
    except BaseException:
        source.close()
        raise
    return checkpoint


class Checkpoint:
    """A model's configuration and its tensors, read lazily. A context manager.

    Attributes:
      path: the file or folder.
      format: "apr" or "safetensors".
      config: the numbers of the architecture; `config.tied` has been verified by the tensors.
      names: the parameters' names; a tied head has none.
      left_out: the stored tensors that are not in `names`, each with the reason.
      companions: the tokenizer and generation files that travel with the model.
    """

    def __init__(self, source: AprFile | HfFolder, dtype: Any = None) -> None:
        self.path = pathlib.Path(source.path)
        self._source = source
        self._dtype = None if dtype is None else np.dtype(dtype)
        if isinstance(source, AprFile):
            self.format = "apr"
            tied = head.is_tied(source)
            self.config = Qwen2Config.from_apr(source.metadata, tied=tied, source=str(self.path))
            self.companions = folders.companions(folders.tokenizer_folder(self.path))
        else:
            self.format = "safetensors"
            self.config = Qwen2Config.from_hf(source.config(), str(source.folder / CONFIG))
            head.require_agreement(source, self.config.tied)
            self.companions = folders.companions(source.folder)
        self.left_out = dict(self._left_out())
        self.names = [name for name in source.names if name not in self.left_out]

    @functools.cached_property
    def problems(self) -> list[Oddity]:
        """What is odd but not wrong, unraised. For `.apr` the first access reads the whole file."""
        if not isinstance(self._source, AprFile):
            return []
        return [*head.oddities(self._source, self.config.tied), *self._source.problems]

    def coverage(self) -> Coverage:
        """How names and shapes compare with what the configuration needs, both ways."""
        return coverage(self.config, {name: self.shape(name) for name in self.names})

    def require_complete(self) -> None:
        """Check that names and shapes are exactly what the configuration needs.

        Raises:
          IncompleteModel: names up to five of each kind of difference.
        """
        found = self.coverage()
        if not found.complete:
            raise IncompleteModel(
                self.path, f"{found.describe()}; take tensors and configuration of one model"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; matrices are [out, in]."""
        return self._source.info(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of what `read` returns; of its own, a quantised tensor has float32.

        Raises:
          UnsupportedDtype: safetensors has types that `.apr` has not.
        """
        stored = self._source.info(name).dtype
        row = dtypes.BY_NAME.get(stored)
        if row is None:
            raise UnsupportedDtype(
                self.path, f"has type {stored}, which .apr files cannot hold", tensor=name
            )
        if self._dtype is not None:
            return self._dtype
        return np.dtype(np.float32) if row.numpy is None else row.numpy

    def is_quantised(self, name: str) -> bool:
        """Whether `read` decodes the tensor, from a type that NumPy has not."""
        row = dtypes.BY_NAME.get(self._source.info(name).dtype)
        return row is not None and row.numpy is None

    def nbytes(self, name: str) -> int:
        """The size of what `read` returns, in bytes."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def read(self, name: str) -> np.ndarray:
        """One tensor in full shape; in its own type, of an `.apr` file, a read-only view.

        Raises:
          NoSuchTensor: not among `names`.
          UnsupportedDtype: as for `dtype`.
          OutOfRange: a finite value is none in the type that was asked for.
          SizeMismatch: the stored bytes are not as many as the shape needs.
        """
        if name in self.left_out:
            raise NoSuchTensor(self.path, self.left_out[name], tensor=name)
        self.dtype(name)
        array = self._source.read(name)
        if array.shape != self.shape(name):
            raise SizeMismatch(
                self.path,
                f"has {array.size:,} elements, its shape {list(self.shape(name))} needs another "
                "number; import the model again from its source",
                tensor=name,
            )
        return self._cast(name, array)

    def close(self) -> None:
        """Let go of the files. Arrays that were read stay valid."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cast(self, name: str, array: np.ndarray) -> np.ndarray:
        if self._dtype is None or array.dtype == self._dtype:
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(self._dtype)
        if np.count_nonzero(np.isfinite(cast)) != np.count_nonzero(np.isfinite(array)):
            raise OutOfRange(
                self.path,
                f"has values beyond the range of {self._dtype}; choose a wider type",
                tensor=name,
            )
        return cast

    def _left_out(self) -> Iterator[tuple[str, str]]:
        for name in self._source.names:
            if name == HEAD and self.config.tied:
                yield name, f"the head is tied: it is {EMBEDDING}"
            elif name.endswith(".rotary_emb.inv_freq"):
                yield name, "a buffer that follows from rope_theta, not a parameter"


def _open_source(path: pathlib.Path) -> AprFile | HfFolder:
    if path.is_dir():
        return HfFolder(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror})") from error
    if magic == MAGIC or path.suffix == ".apr":
        return open_apr(path)
    if magic == b"GGUF":
        raise UnknownFormat(
            path, "is a GGUF file, which is not supported yet; use the HuggingFace folder instead"
        )
    if path.suffix == ".safetensors":
        return HfFolder(path)
    raise UnknownFormat(
        path, "is neither an .apr file, nor a HuggingFace folder, nor a .safetensors file"
    )
