"""From a block of a corpus to token ids: what each worker does."""

import dataclasses
import hashlib

import numpy as np

from apr_jax.text import blocks
from apr_jax.text.loading import AnyTokenizer

DIGEST = 16  # bytes of a document's hash


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Documents on their way to one folder of shards.

    Attributes:
      digests: uint8 [documents, 16], the hash of each one's text.
      sizes: int64 [documents], bytes of text.
      counts: int64 [documents], ids of each, its separator among them. None: not encoded.
      ids: uint32, the documents' ids one behind another.
    """

    digests: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray | None = None
    ids: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a block held: its documents for each folder, and its contents without the texts."""

    contents: blocks.Contents
    documents: int
    parts: list[Encoded]


@dataclasses.dataclass(frozen=True)
class Task:
    """A block, and for each folder whether its documents are to be encoded or only hashed."""

    block: blocks.Block
    wanted: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class BlockEncoder:
    """Reads a block and encodes it.

    Attributes:
      tokenizer: encodes.
      content_field: see `read_documents`.
      most_bad: so many damaged lines of a block are reported.
      eos_id: the separator, None for none.
      eos_first: whether it goes before a document instead of behind it.
      val_fraction: share of the documents for the second folder; None without one.
      compiles: whether there is enough to encode, in a process of our own, to compile first.
      compiles_merges: whether there is enough to compile the merging of new words too.
    """

    tokenizer: AnyTokenizer
    content_field: str
    most_bad: int
    eos_id: int | None
    eos_first: bool
    val_fraction: float | None
    compiles: bool = False
    compiles_merges: bool = False

    def __call__(self, task: Task) -> Answer:
        contents = blocks.read(task.block, self.content_field, self.most_bad)
        texts, contents.texts = contents.texts, []
        digests_D16, sizes = _hashed(texts)
        sides = [np.ones(len(texts), bool)]
        if self.val_fraction is not None:
            held_out = is_held_out(digests_D16, self.val_fraction)
            sides = [~held_out, held_out]
        parts = []
        for side, wanted in zip(sides, task.wanted, strict=True):
            which = np.flatnonzero(side)
            counts, ids = self._encode([texts[at] for at in which]) if wanted else (None, None)
            parts.append(Encoded(digests_D16[which], sizes[which], counts, ids))
        return Answer(contents, len(texts), parts)

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.compiles:
            self.tokenizer.compile(merges=self.compiles_merges)
        ids, offsets = self.tokenizer.encode_flat(texts)
        ids, counts = ids.astype("<i4", copy=False).view("<u4"), np.diff(offsets)
        if self.eos_id is None:
            return counts, ids
        places = np.cumsum(counts) - counts if self.eos_first else np.cumsum(counts)
        return counts + 1, np.insert(ids, places, self.eos_id)


def _hashed(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the texts, uint8 [texts, 16], and their bytes as UTF-8, int64 [texts]."""
    digests, sizes = [], []
    for text in texts:  # one at a time: a document can be large
        data = text.encode()
        digests.append(hash_of(data))
        sizes.append(len(data))
    digests_D16 = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)
    return digests_D16, np.array(sizes, np.int64)


def hash_of(document: bytes) -> bytes:
    """The hash by which a document is known again and put on one side of a split."""
    return hashlib.blake2b(document, digest_size=DIGEST).digest()


def is_held_out(digests_D16: np.ndarray, fraction: float) -> np.ndarray:
    """bool [documents]: which ones are held out. Equal ones fall on the same side everywhere."""
    heads = np.ascontiguousarray(digests_D16[:, :8]).view("<u8")[:, 0]
    return heads < np.uint64(fraction * 2**64)
