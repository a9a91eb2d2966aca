"""One view of a model's checkpoint, whatever its format: configuration, names, arrays."""

import functools
import math
import os
import pathlib
from collections.abc import Buffer, Iterator
from typing import Any, Self

import numpy as np

from apr_jax.codec import claims, dtypes, embedded, folders, head, mislabel
from apr_jax.codec.errors import (
    IncompleteModel,
    Mislabelled,
    NoSuchTensor,
    Oddity,
    OutOfRange,
    SizeMismatch,
    UnknownFormat,
    Unreadable,
)
from apr_jax.codec.gguf_file import GgufFile
from apr_jax.codec.header import MAGIC
from apr_jax.codec.hf_folder import HfFolder
from apr_jax.codec.qwen2 import EMBEDDING, HEAD, Coverage, Qwen2Config, coverage
from apr_jax.codec.reader import AprFile, open_apr
from apr_jax.errors import short
from apr_jax.files import open_regular, read_bytes

_GGUF_MAGIC = b"GGUF"


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    dtype: Any = None,
    retag: bool = False,
    mend_names: bool = False,
    config: str | os.PathLike[str] | None = None,
) -> "Checkpoint":
    """Open a Qwen2 or Llama checkpoint: `.apr`, HuggingFace folder, safetensors file or GGUF.

    Whether the head is tied is decided here. For `.apr` the tensors decide, which compares head and
    embedding where both are stored; for HuggingFace `config.json` does, and a stored head must not
    contradict it; a GGUF without a head is tied.

    Args:
      path: the file or folder.
      strict: refuse the oddities that `Checkpoint.problems` lists.
      dtype: the type in which every tensor is to be read; None leaves each in its own.
      retag: read F16 tensors that hold BF16 as BF16, and the other way round.
      mend_names: give names the `model.` at their start that some writers stripped.
      config: the `config.json` of a safetensors file that does not lie beside it.

    Raises:
      AprError: the file is not readable or contradicts itself.
      ConfigError: the configuration is incomplete or not plain Qwen2 or Llama.
    """
    source = _open_source(pathlib.Path(path), config)
    try:
        checkpoint = Checkpoint(source, dtype, retag=retag, mend_names=mend_names)
        if strict and checkpoint.problems:
            raise checkpoint.problems[0]
    except BaseException:
        source.close()
        raise
    return checkpoint


_Source = AprFile | HfFolder | GgufFile


class Checkpoint:
    """A model's configuration and its tensors, read lazily. A context manager.

    Attributes:
      path: the file or folder.
      format: "apr", "safetensors" or "gguf".
      config: the numbers of the architecture; `config.tied` has been verified by the tensors.
      names: the parameters' names; a tied head has none.
      left_out: the stored tensors that are not in `names`, each with the reason.
      companions: the tokenizer and generation files that lie beside the model.
      retagged: the tensors that are read in another type than their tag says, each with the reason.
      renamed: whether the names were given their `model.`.
    """

    def __init__(
        self,
        source: _Source,
        dtype: Any = None,
        *,
        retag: bool = False,
        mend_names: bool = False,
    ) -> None:
        self.path = pathlib.Path(source.path)
        self._source = source
        self._dtype = None if dtype is None else np.dtype(dtype)
        self.renamed = False
        if mend_names and not isinstance(source, GgufFile) and claims.lacks_prefix(source.names):
            source.rename({name: claims.with_prefix(name) for name in source.names})
            self.renamed = True
        if isinstance(source, AprFile):
            self.format = "apr"
            tied = head.is_tied(source)
            self.config = Qwen2Config.from_apr(source.metadata, tied=tied, source=str(self.path))
            self.companions = folders.companions(folders.tokenizer_folder(self.path))
        elif isinstance(source, GgufFile):
            self.format = "gguf"
            self.config = source.config
            self.companions = []
        else:
            self.format = "safetensors"
            self._hf_config = source.config()
            self.config = Qwen2Config.from_hf(self._hf_config, str(source.config_path))
            head.require_agreement(source, self.config.tied)
            self.companions = folders.companions(source.folder)
        wrong = self.mislabelled if retag else {}
        self.retagged = {name: str(odd) for name, odd in wrong.items()}
        self.left_out = dict(self._left_out())
        self.names = [name for name in source.names if name not in self.left_out]

    @property
    def metadata(self) -> dict[str, Any]:
        """What an `.apr` file says beside its tensors; empty for other formats."""
        return dict(self._source.metadata) if isinstance(self._source, AprFile) else {}

    @functools.cached_property
    def problems(self) -> list[Oddity]:
        """What is odd but not wrong, unraised. For `.apr` the first access reads the whole file."""
        if not isinstance(self._source, AprFile):
            found: list[Oddity] = list(self.mislabelled.values())
        else:
            found = [*head.oddities(self._source, self.config.tied), *self._source.problems]
        return [odd for odd in found if odd.tensor not in self.retagged]

    @functools.cached_property
    def mislabelled(self) -> dict[str, Mislabelled]:
        """The tensors tagged F16 that hold BF16, or the other way round, judged by a sample."""
        return mislabel.oddities(self._source)

    def companion_files(self) -> dict[str, bytes]:
        """What travels with the model, content by name: files beside it, or its own vocabulary."""
        if self.companions:
            return {file.name: read_bytes(file) for file in self.companions}
        return self._embedded[0]

    @property
    def notes(self) -> list[str]:
        """What could not come along, such as a vocabulary whose pre-tokeniser is not known."""
        problem = None if self.companions else self._embedded[1]
        notes = [] if problem is None else [f"tokenizer left out: {problem}"]
        if self.format == "safetensors":
            held = {self.stored(name) for name in self.names}
            notes = [*claims.unkept(self._hf_config, held), *notes]
        if self.renamed:
            notes = ["the names lacked the `model.` at their start, which was put back", *notes]
        return notes

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
                self.path,
                f"{claims.contradiction(self.config, found, self.names)}{found.describe()}; "
                "take tensors and configuration of one model",
                coverage=found,
            )

    def require_true_types(self) -> None:
        """Check that no tensor tagged F16 holds BF16, or the other way round.

        Raises:
          Mislabelled: the first such tensor, with the evidence and how many there are.
        """
        wrong = {name: odd for name, odd in self.mislabelled.items() if name not in self.retagged}
        for odd in wrong.values():
            others = f" (one of {len(wrong)} such tensors)" if len(wrong) > 1 else ""
            raise Mislabelled(self.path, f"{odd.why}{others}", tensor=odd.tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; matrices are [out, in]."""
        return self._source.info(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of what `read` returns; of its own, a quantised tensor has float32.

        Raises:
          UnsupportedDtype: safetensors has types that `.apr` has not.
        """
        native = dtypes.BY_NAME[self.stored(name)].numpy
        if self._dtype is not None:
            return self._dtype
        return np.dtype(np.float32) if native is None else native

    def stored(self, name: str) -> str:
        """The `.apr` name of the type in which the tensor is stored.

        Raises:
          UnsupportedDtype: safetensors has types that `.apr` has not.
        """
        stored = dtypes.find(self._source.info(name).dtype, self.path, name).name
        return mislabel.OTHER[stored] if name in self.retagged else stored

    def raw(self, name: str) -> Buffer:
        """The bytes of one tensor as `stored` has them."""
        return self._source.raw(name)

    @property
    def decoded(self) -> dict[str, str]:
        """The tensors of types that `.apr` has not, read as float32, each with GGUF's type."""
        if not isinstance(self._source, GgufFile):
            return {}
        infos = {name: self._source.info(name) for name in self.names}
        return {name: info.stored for name, info in infos.items() if info.stored != info.dtype}

    @property
    def is_cast(self) -> bool:
        """Whether every tensor is read in one type that was asked for."""
        return self._dtype is not None

    def is_quantised(self, name: str) -> bool:
        """Whether `read` decodes the tensor, from a type that NumPy has not."""
        return dtypes.BY_NAME[self.stored(name)].numpy is None

    def is_narrowed(self, name: str) -> bool:
        """Whether the type that was asked for does not hold every value of the tensor's own."""
        native = dtypes.BY_NAME[self.stored(name)].numpy or np.dtype(np.float32)
        return self._dtype is not None and not np.can_cast(native, self._dtype)

    def nbytes(self, name: str) -> int:
        """The size of what `read` returns, in bytes."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def read(self, name: str) -> np.ndarray:
        """One tensor in full shape; in its own type, of an `.apr` file, a read-only view.

        Raises:
          NoSuchTensor: not among `names`.
          UnsupportedDtype: as for `dtype`.
          OutOfRange: in the type that was asked for a finite value is none, or all become zeros.
          SizeMismatch: the stored bytes are not as many as the shape needs.
        """
        return self._cast(name, self.read_uncast(name))

    def read_uncast(self, name: str) -> np.ndarray:
        """What `read` returns where no type is asked for."""
        if name in self.left_out:
            raise NoSuchTensor(self.path, self.left_out[name], tensor=name)
        self.dtype(name)
        array = self._source.read(name)
        if name in self.retagged:
            array = array.view(mislabel.TAGS[self.stored(name)])
        if array.shape != self.shape(name):
            raise SizeMismatch(
                self.path,
                f"has {array.size:,} elements, its shape {short(str(list(self.shape(name))))} "
                "needs another "
                "number; import the model again from its source",
                tensor=name,
            )
        return array

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
        if not cast.any() and array.any():
            raise OutOfRange(
                self.path,
                f"has values so small that all are zero as {self._dtype}; choose a wider type",
                tensor=name,
            )
        return cast

    @functools.cached_property
    def _embedded(self) -> embedded.Embedded:
        if isinstance(self._source, GgufFile):
            return embedded.of_gguf(self._source)
        return embedded.of_apr(self._source) if isinstance(self._source, AprFile) else ({}, None)

    def _left_out(self) -> Iterator[tuple[str, str]]:
        for name in self._source.names:
            if name == HEAD and self.config.tied:
                yield name, f"the head is tied: it is {EMBEDDING}"
            elif name.endswith(".rotary_emb.inv_freq"):
                yield name, "a buffer that follows from rope_theta, not a parameter"


def _open_source(path: pathlib.Path, config: str | os.PathLike[str] | None) -> _Source:
    if config is not None and (path.is_dir() or path.suffix != ".safetensors"):
        raise UnknownFormat(path, "has its own configuration; only a .safetensors file takes one")
    if path.is_dir():
        return HfFolder(path)
    try:
        with open_regular(path) as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror})") from error
    if magic == MAGIC or path.suffix == ".apr":
        return open_apr(path)
    if magic == _GGUF_MAGIC or path.suffix == ".gguf":
        return GgufFile(path)
    if path.suffix == ".safetensors":
        return HfFolder(path, config)
    raise UnknownFormat(
        path, "is neither an .apr or GGUF file, nor a HuggingFace folder, nor a .safetensors file"
    )
