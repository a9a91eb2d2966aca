"""Is the output head the embedding? The tensors say so, not what the metadata claims."""

from collections.abc import Iterator

import numpy as np

from apr_jax.codec import dtypes
from apr_jax.codec.errors import HeadClaim, HeadError, Oddity
from apr_jax.codec.hf_folder import HfFolder
from apr_jax.codec.qwen2 import EMBEDDING, HEAD
from apr_jax.codec.reader import AprFile

_ELEMENTS_AT_ONCE = 1 << 22


def is_tied(file: AprFile) -> bool:
    """Whether the model in an `.apr` file uses its embedding as head.

    It does if no head is stored, if the head is a placeholder without bytes, or if it equals the
    embedding element for element. Only an explicit `tied_embeddings: false` makes a missing head a
    missing tensor, and an equal one a parameter of its own.

    Raises:
      HeadError: a placeholder stands for an embedding that has no bytes either.
    """
    claim = file.metadata.get("tied_embeddings")
    if HEAD not in file.names:
        return claim is not False
    if file.info(HEAD).nbytes:
        return claim is not False and _equal(file)
    if EMBEDDING not in file.names or not file.info(EMBEDDING).nbytes:
        raise HeadError(
            file.path,
            f"is a placeholder without bytes, and {EMBEDDING} has none either; "
            "import the model again from its source",
            tensor=HEAD,
        )
    return True


def oddities(file: AprFile, tied: bool) -> Iterator[Oddity]:
    """The oddity of metadata that claims a tied head where the tensors have another one."""
    if file.metadata.get("tied_embeddings") is True and not tied:
        yield HeadClaim(
            file.path,
            f"differs from {EMBEDDING}, so the model is read as untied "
            "although its metadata has tied_embeddings=true",
            tensor=HEAD,
        )


def require_agreement(folder: HfFolder, tied: bool) -> None:
    """Refuse a HuggingFace checkpoint whose stored head contradicts `tied` of its configuration.

    Raises:
      HeadError: tied, but another head is there.
    """
    if tied and HEAD in folder.names and not _equal(folder):
        raise HeadError(
            folder.path,
            f"differs from {EMBEDDING} though config.json has tie_word_embeddings=true; "
            "set it to false, or remove the head",
            tensor=HEAD,
        )


def _quantised_alike(file: AprFile) -> bool:
    """One shape and one quantised type: then a copy has the same bytes, and none is decoded."""
    head, embedding = file.info(HEAD), file.info(EMBEDDING)
    return (
        dtypes.BY_NAME[head.dtype].numpy is None
        and head.dtype == embedding.dtype
        and head.shape == embedding.shape
    )


@np.errstate(invalid="ignore")  # signalling NaNs become quiet ones
def _equal(source: AprFile | HfFolder) -> bool:
    """By value and a part at a time: importers store one of the two as a float32 copy."""
    if EMBEDDING not in source.names:
        return False
    if isinstance(source, AprFile) and _quantised_alike(source):
        return np.array_equal(np.asarray(source.raw(HEAD)), np.asarray(source.raw(EMBEDDING)))
    head, embedding = source.read(HEAD), source.read(EMBEDDING)
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
