"""Shards of token ids read back for training: one stream, cut into windows, put into batches.

Letters in shapes: B windows in a batch, T positions in a window.
"""

import bisect
import collections
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np

from apr_jax.text.manifest import (
    NAME,
    ORIGINAL_SCHEMA,
    SCHEMA,
    TOKEN_BYTES,
    UNFINISHED,
    ShardError,
    read_manifest,
)
from apr_jax.text.vocabulary import MAX_IDS

_CHUNK = 1 << 22  # tokens held in memory at a time when the whole stream is looked through
_MAPPED = 256  # shards mapped at a time: each is an open file, of which a process may have 1,024


class Shards:
    """The `.bin` files of one folder as a single memory-mapped stream of token ids.

    A folder written by `encode_corpus` is checked against its manifest. The original program's
    folders are read too: its manifest holds only totals, and may be missing.

    Attributes:
      folder: where the shards lie.
      num_tokens: length of the stream.
      manifest: our manifest, or None.
      eos_id: the id that separates documents, or None when nothing does or nobody says.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open the folder.

        Raises:
          ShardError: there are no shards, or they are not the ones that the manifest lists.
        """
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise ShardError(f"{self.folder}: no such folder: give the --out of encode_corpus")
        paths = sorted(self.folder.glob("*.bin"))
        manifest = read_manifest(self.folder)
        self.manifest = manifest if manifest and manifest["schema"] == SCHEMA else None
        if self.manifest is not None:
            names = [shard["name"] for shard in self.manifest["shards"]]
            _check_names(self.folder, paths, names)
            paths = [self.folder / name for name in names]  # not by name: past 99,999 a digit more
        elif (self.folder / UNFINISHED).exists():
            raise ShardError(
                f"{self.folder}: the encoding was interrupted: run the same encode_corpus again"
            )
        if not paths:
            raise ShardError(f"{self.folder}: holds no .bin shards: run encode_corpus first")
        self._paths = paths
        self._mapped = functools.lru_cache(_MAPPED)(_map_shard)
        # _starts[i] is the position in the stream of shard i's first token.
        self._starts = [0, *itertools.accumulate(map(_tokens_in, paths))]
        self.num_tokens = self._starts[-1]
        self.eos_id: int | None = None
        if self.manifest is not None:
            self._check_sizes(self.manifest["shards"])
            self.eos_id = self.manifest["eos_id"]
        elif manifest is not None:
            self._check_totals(manifest)
            self.eos_id = manifest.get("eos_token_id")

    @functools.cached_property
    def token_bytes(self) -> np.ndarray | None:
        """uint16 [vocab_size]: UTF-8 bytes of text that each id stands for; None if unknown."""
        if self.manifest is None:
            return None
        path = self.folder / TOKEN_BYTES
        try:
            # Mapped, so that a damaged header cannot ask for more memory than the file has.
            table = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, OverflowError) as error:
            raise ShardError(f"{path}: cannot be read ({error}): encode again") from error
        if table.dtype != np.uint16 or table.shape != (self.manifest["vocab_size"],):
            raise ShardError(
                f"{path}: is {table.dtype}{list(table.shape)}, but the manifest says "
                f"uint16[{self.manifest['vocab_size']}]: encode again"
            )
        return np.array(table)

    def check_ids(self, vocab_size: int) -> None:
        """Look through the whole stream for ids that a model of `vocab_size` rows cannot take.

        Raises:
          ShardError: names the shard, the position in it and the id.
        """
        for number, path in enumerate(self._paths):
            shard = self._shard(number)
            for start in range(0, len(shard), _CHUNK):
                chunk = shard[start : start + _CHUNK]
                if int(chunk.max()) >= vocab_size:
                    position = int(np.argmax(chunk >= vocab_size))
                    raise ShardError(
                        f"{path}: id {chunk[position]} at position {start + position} is beyond "
                        f"the model's {vocab_size} rows: encode with the model's own tokenizer"
                    )

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 [stop - start]: the ids of the stream from `start` to `stop`, in memory.

        Raises:
          IndexError: the range is not inside the stream.
          ShardError: an id is not one of the manifest's vocabulary, or without a manifest of any.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}:{stop} of a stream of {self.num_tokens}")
        ids = np.empty(stop - start, np.int32)
        number = bisect.bisect_right(self._starts, start) - 1
        position = start
        while position < stop:
            first = self._starts[number]
            part = self._shard(number)[position - first : stop - first]
            ids[position - start : position - start + len(part)] = part.view("<i4")
            position += len(part)
            number += 1
        bound = MAX_IDS if self.manifest is None else self.manifest["vocab_size"]
        unsigned = ids.view(np.uint32)
        if ids.size and int(unsigned.max()) >= bound:
            at = int(np.argmax(unsigned >= bound))
            self._refuse_id(start + at, int(unsigned[at]), bound)
        return ids

    def _refuse_id(self, position: int, id_: int, bound: int) -> NoReturn:
        number = bisect.bisect_right(self._starts, position) - 1
        place = f"{self._paths[number]}: id {id_} at position {position - self._starts[number]}"
        if self.manifest is None:
            raise ShardError(
                f"{place} is in no vocabulary, those end below {bound}: is this a shard of 32-bit "
                "token ids?"
            )
        raise ShardError(
            f"{place} is not below vocab_size, which is {bound} in {NAME}: the file was changed or "
            "damaged; the same encode_corpus makes it anew"
        )

    def hashes(self) -> set[str]:
        """The SHA-256 of each shard that is not empty."""
        sizes = map(self._size, range(len(self._paths)))
        return {digest for digest, size in zip(self._digests(), sizes, strict=True) if size}

    def verify(self) -> bool:
        """Compare every shard's bytes with their hash in the manifest, reading them all.

        Returns:
          False if there are no hashes to compare with, as in the original's folders.

        Raises:
          ShardError: names the first shard that has changed.
        """
        if self.manifest is None:
            return False
        entries = self.manifest["shards"]
        for path, digest, entry in zip(self._paths, self._digests(), entries, strict=True):
            if digest != entry["sha256"]:
                raise ShardError(
                    f"{path}: its bytes do not hash to what {NAME} says: the file was changed or "
                    "damaged; the same encode_corpus makes it anew"
                )
        return True

    def _digests(self) -> Iterator[str]:
        """The SHA-256 of each shard, several at a time."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            yield from threads.map(self._sha256, range(len(self._paths)))

    def _sha256(self, number: int) -> str:
        return hashlib.sha256(self._shard(number).data).hexdigest()

    def _size(self, number: int) -> int:
        return self._starts[number + 1] - self._starts[number]

    def _shard(self, number: int) -> np.ndarray:
        return self._mapped(self._paths[number], self._size(number))

    def chunks(self) -> Iterator[np.ndarray]:
        """The stream in order, as int32 pieces of a few million ids."""
        for start in range(0, self.num_tokens, _CHUNK):
            yield self.read(start, min(start + _CHUNK, self.num_tokens))

    def _check_sizes(self, entries: Sequence[dict[str, Any]]) -> None:
        for number, (path, entry) in enumerate(zip(self._paths, entries, strict=True)):
            size = self._size(number)
            if size != entry["tokens"]:
                raise ShardError(
                    f"{path}: holds {size} tokens, but the manifest says {entry['tokens']}: "
                    "the file was cut or changed; encode again"
                )

    def _check_totals(self, manifest: dict[str, Any]) -> None:
        found = {"shard_count": len(self._paths), "total_tokens": self.num_tokens}
        for key, value in found.items():
            if manifest.get(key, value) != value:
                raise ShardError(
                    f"{self.folder}: {key} is {value} in the files, but {manifest[key]} in {NAME} "
                    f"({ORIGINAL_SCHEMA}): shards of another run lie here, or some are missing"
                )


class Windows:
    """The stream as windows of `seq_length` inputs and as many targets, shifted by one.

    Window i starts at token i * seq_length and shares its last target with the next window's first
    input, so every token but the stream's first is a target exactly once. What the last window
    lacks is padding of weight 0.
    """

    def __init__(self, shards: Shards, seq_length: int) -> None:
        """Raises ShardError when the stream is too short to hold one target."""
        if seq_length < 1:
            raise ShardError(f"seq_length={seq_length}: must be at least 1")
        if shards.num_tokens < 2:
            raise ShardError(
                f"{shards.folder}: {shards.num_tokens} tokens hold no input with a target"
            )
        self.shards, self.seq_length = shards, seq_length

    def __len__(self) -> int:
        return -(-(self.shards.num_tokens - 1) // self.seq_length)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The windows of these indices, in this order.

        Returns:
          ids_BT: int32, the inputs.
          targets_BT: int32, the token after each input.
          weights_BT: float32, 1 where the target is real and 0 where it is padding.
        """
        seq_length = self.seq_length
        tokens_BW = np.zeros((len(indices), seq_length + 1), np.int32)  # W = T + 1
        weights_BT = np.zeros((len(indices), seq_length), np.float32)
        for row, index in enumerate(indices):
            start = int(index) * seq_length
            tokens = self.shards.read(start, min(start + seq_length + 1, self.shards.num_tokens))
            tokens_BW[row, : len(tokens)] = tokens
            weights_BT[row, : len(tokens) - 1] = 1
        return {
            "ids_BT": tokens_BW[:, :-1].copy(),
            "targets_BT": tokens_BW[:, 1:].copy(),
            "weights_BT": weights_BT,
        }


def epoch_order(num_windows: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_windows]: the order in which this epoch visits the windows.

    Sorted random bits, because NumPy promises the bits of PCG64 for ever but not its shuffles.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(bits, kind="stable")


def segment_start(ids_BT: np.ndarray, eos_id: int) -> np.ndarray:
    """int32 [B, T]: where in its row the document of each position starts.

    An end-of-text token belongs to the document that it ends.
    """
    positions_T = np.arange(ids_BT.shape[1], dtype=np.int32)
    starts_BT = np.zeros(ids_BT.shape, np.int32)
    starts_BT[:, 1:] = np.where(ids_BT[:, :-1] == eos_id, positions_T[1:], np.int32(0))
    return np.maximum.accumulate(starts_BT, axis=1)


def document_overlap(a: Shards, b: Shards) -> int:
    """How many documents of `b`'s stream also occur in `a`; empty documents do not count.

    Both are streamed, and only `b`'s hashes are kept, so let `b` be the held-out side.

    Raises:
      ShardError: a stream does not say which id separates its documents.
    """
    wanted = collections.Counter(_document_hashes(b))
    found = {digest for digest in _document_hashes(a) if digest in wanted}
    return sum(wanted[digest] for digest in found)


def _document_hashes(shards: Shards) -> Iterator[bytes]:
    """The digest of each document that is not empty, in the stream's order."""
    if shards.eos_id is None:
        raise ShardError(
            f"{shards.folder}: nothing separates its documents, so they cannot be compared: "
            "encode with an EOS policy other than none"
        )
    document, length = hashlib.blake2b(digest_size=16), 0
    for ids in shards.chunks():
        start = 0
        for end in np.flatnonzero(ids == shards.eos_id).tolist():
            document.update(ids[start:end].tobytes())
            if length + end - start:
                yield document.digest()
            document, length, start = hashlib.blake2b(digest_size=16), 0, end + 1
        document.update(ids[start:].tobytes())
        length += len(ids) - start
    if length:
        yield document.digest()


def _tokens_in(path: pathlib.Path) -> int:
    size = path.stat().st_size
    if size % 4:
        raise ShardError(
            f"{path}: {size} bytes is not a whole number of 32-bit ids: the file was cut, or is "
            "not a shard"
        )
    return size // 4


def _map_shard(path: pathlib.Path, tokens: int) -> np.ndarray:
    if not tokens:  # the original may end on one, and an empty file cannot be mapped
        return np.empty(0, "<u4")
    if _tokens_in(path) != tokens:
        raise ShardError(f"{path}: has changed since it was opened: encode again")
    return np.memmap(path, "<u4", mode="r")


def _check_names(folder: pathlib.Path, paths: Sequence[pathlib.Path], names: list[str]) -> None:
    found = {path.name for path in paths}
    missing, stray = sorted(set(names) - found), sorted(found - set(names))
    if missing:
        raise ShardError(
            f"{folder}: {missing[0]} is in the manifest but not here ({len(missing)} missing): "
            "encode again"
        )
    if stray:
        raise ShardError(
            f"{folder}: {stray[0]} is not in the manifest ({len(stray)} stray): remove what "
            "another run left"
        )
