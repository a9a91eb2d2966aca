"""One view of a model's checkpoint, whatever its format: configuration, names, arrays."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from apr_jax.codec import dtypes
from apr_jax.codec.errors import (
    AprError,
    HeadClaim,
    HeadError,
    NoSuchTensor,
    NotDecodable,
    SizeMismatch,
    UnknownFormat,
    Unreadable,
)
from apr_jax.codec.header import MAGIC
from apr_jax.codec.hf_folder import HfFolder
from apr_jax.codec.qwen2 import EMBEDDING, HEAD, Coverage, Qwen2Config, coverage
from apr_jax.codec.reader import AprFile, open_apr

_ELEMENTS_AT_ONCE = 1 << 22


class Checkpoint:
    """A model's configuration and its tensors, read lazily. A context manager.

    Attributes:
      path: the file or folder.
      format: "apr" or "safetensors".
      config: the numbers of the architecture; `config.tied` has been verified by the tensors.
      names: the parameters' names; a tied head has none.
      left_out: the stored tensors that are not in `names`, each with the reason.
    """

    def __init__(self, source: AprFile | HfFolder) -> None:
        self.path = source.path
        self._source = source
        self._head_problems: list[AprError] = []
        if isinstance(source, AprFile):
            self.format = "apr"
            tied = self._apr_head_is_tied(source)
            self.config = Qwen2Config.from_apr(
                source.metadata, tied=tied, source=os.fspath(source.path)
            )
        else:
            self.format = "safetensors"
            self.config = Qwen2Config.from_hf(source.config(), str(source.folder / "config.json"))
            tied = self.config.tied
            if tied and HEAD in source.names and not self._head_equals_embedding():
                raise HeadError(
                    source.path,
                    f"differs from {EMBEDDING} though config.json has tie_word_embeddings=true; "
                    "set it to false, or remove the head",
                    tensor=HEAD,
                )
        self.left_out = dict(self._left_out(tied))
        self.names = [name for name in source.names if name not in self.left_out]

    @property
    def problems(self) -> list[AprError]:
        """What is odd but not wrong, unraised. For `.apr` the first access reads the whole file."""
        found: list[AprError] = list(self._head_problems)
        if isinstance(self._source, AprFile):
            found += self._source.problems
        return found

    def coverage(self) -> Coverage:
        """How names and shapes compare with what the configuration needs, both ways."""
        return coverage(self.config, {name: self.shape(name) for name in self.names})

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor; matrices are [out, in]."""
        if isinstance(self._source, AprFile):
            return self._source.info(name).shape
        return self._source.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of what `read` returns.

        Raises:
          NotDecodable: the tensor is stored in blocks, which are not supported yet.
        """
        dtype = dtypes.BY_NAME[self._dtype_name(name)].numpy
        if dtype is None:
            raise NotDecodable(
                self.path, f"has type {self._dtype_name(name)}, not supported yet", tensor=name
            )
        return dtype

    def read(self, name: str) -> np.ndarray:
        """One tensor in its own type and its full shape; of an `.apr` file a read-only view.

        Raises:
          NoSuchTensor: not among `names`.
          SizeMismatch: the stored bytes are not as many as the shape needs.
        """
        if name in self.left_out:
            raise NoSuchTensor(self.path, self.left_out[name], tensor=name)
        array = self._source.read(name)
        if array.shape != self.shape(name):
            raise SizeMismatch(
                self.path,
                f"has {array.size:,} elements, its shape {list(self.shape(name))} needs another "
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

    def _dtype_name(self, name: str) -> str:
        if isinstance(self._source, AprFile):
            return self._source.info(name).dtype
        return self._source.dtype(name)

    def _left_out(self, tied: bool) -> Iterator[tuple[str, str]]:
        for name in self._source.names:
            if name == HEAD and tied:
                yield name, f"the head is tied: it is {EMBEDDING}"
            elif name.endswith(".rotary_emb.inv_freq"):
                yield name, "a buffer that follows from rope_theta, not a parameter"

    def _apr_head_is_tied(self, source: AprFile) -> bool:
        """Decided by the tensors. `tied_embeddings` counts only where they leave it open."""
        claim = source.metadata.get("tied_embeddings")
        if HEAD not in source.names:
            # A head that the file itself says is there, and is not, is missing rather than tied.
            return claim is not False
        head = source.info(HEAD)
        if head.nbytes == 0:
            if EMBEDDING not in source.names or source.info(EMBEDDING).nbytes == 0:
                raise HeadError(
                    source.path,
                    f"is a placeholder without bytes, and {EMBEDDING} has none either; "
                    "import the model again from its source",
                    tensor=HEAD,
                )
            return True
        tied = EMBEDDING in source.names and self._head_equals_embedding()
        if claim is True and not tied:
            self._head_problems.append(
                HeadClaim(
                    source.path,
                    f"differs from {EMBEDDING}, so the model is read as untied "
                    "although its metadata has tied_embeddings=true",
                    tensor=HEAD,
                )
            )
        return tied

    def _head_equals_embedding(self) -> bool:
        """Element for element by value: importers store one of them as a float32 copy."""
        if EMBEDDING not in self._source.names:
            return False
        head, embedding = self._source.read(HEAD), self._source.read(EMBEDDING)
        if head.shape != embedding.shape:
            return False
        head, embedding = head.reshape(-1), embedding.reshape(-1)
        return all(
            np.array_equal(
                head[at : at + _ELEMENTS_AT_ONCE].astype(np.float64),
                embedding[at : at + _ELEMENTS_AT_ONCE].astype(np.float64),
                equal_nan=True,
            )
            for at in range(0, head.size, _ELEMENTS_AT_ONCE)
        )


def open_checkpoint(path: str | os.PathLike[str], *, strict: bool = False) -> Checkpoint:
    """Open a Qwen2 checkpoint: an `.apr` file, a HuggingFace folder, or a safetensors file.

    Whether the head is tied is decided here: for `.apr` by the tensors alone, which compares head
    and embedding where both are stored; for HuggingFace by `config.json`, which a stored head must
    not contradict. With `strict` oddities of an `.apr` file are refused.

    Raises:
      AprError: the file is not readable or contradicts itself.
      ConfigError: the configuration is incomplete or not plain Qwen2.
    """
    source = _open_source(pathlib.Path(path), strict)
    try:
        checkpoint = Checkpoint(source)
        if strict and checkpoint.problems:
            raise checkpoint.problems[0]
    except BaseException:
        source.close()
        raise
    return checkpoint


def _open_source(path: pathlib.Path, strict: bool) -> AprFile | HfFolder:
    if path.is_dir():
        return HfFolder(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror})") from error
    if magic == MAGIC or path.suffix == ".apr":
        return open_apr(path, strict=strict)
    if magic == b"GGUF":
        raise UnknownFormat(
            path, "is a GGUF file, which is not supported yet; use the HuggingFace folder instead"
        )
    if path.suffix == ".safetensors":
        return HfFolder(path)
    raise UnknownFormat(
        path, "is neither an .apr file, nor a HuggingFace folder, nor a .safetensors file"
    )
