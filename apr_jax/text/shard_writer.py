"""Writing token ids as shards that can be cut off at any moment and taken up again.

A folder goes through two states. While `unfinished.json` is there it lists the shards that are
complete; `manifest.json` takes its place when all are. Both name the settings, and for each shard
the hash of its ids and of the documents in it. The same settings and documents give the same bytes,
interrupted or not; a folder that holds anything else is refused and left as it is.
"""

import hashlib
import io
import pathlib
from typing import Any, NoReturn

import numpy as np

from apr_jax.errors import counted
from apr_jax.files import atomic_write, read_json, write_bytes, write_json
from apr_jax.text.block_encoder import Encoded
from apr_jax.text.manifest import (
    NAME,
    SCHEMA,
    TOKEN_BYTES,
    UNFINISHED,
    ShardError,
    is_record,
    settings_sha256,
    shard_name,
)


class ShardWriter:
    """Writes one folder of shards.

    Give it the documents in order by `add`, and at the end `finish`.
    """

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any]) -> None:
        """Take the folder, or go on with what it holds of the same settings.

        Raises:
          ShardError: the folder holds shards of other settings, or of another program.
        """
        self.folder = folder
        self._settings = {
            "schema": SCHEMA,
            **settings,
            "settings_sha256": settings_sha256(settings),
        }
        self._finished = self._find_finished()
        # Documents of finished shards pass by again, to be compared; this many shards have so far.
        self._passed = 0
        self._finished_documents = sum(entry["documents"] for entry in self._finished)
        self._document_index = 0
        self._begun = False
        self._start_shard()

    def needs_ids(self, count: int) -> bool:
        """Whether one of the next `count` documents is not in a finished shard already."""
        return self._document_index + count > self._finished_documents

    def add(self, documents: Encoded) -> None:
        """Append the next documents, closing each shard that gets full.

        Those that are in finished shards are compared with them, and need no ids.

        Raises:
          ShardError: other documents stood here when those shards were written.
        """
        at = self._pass(documents)
        if at == len(documents.sizes):
            return
        if self._passed_all_but_last_is_short():
            self._refuse_changed()
        if documents.counts is None or documents.ids is None:
            raise ValueError("these documents are in no finished shard: encode them")
        self._begin()
        counts, ids = documents.counts, documents.ids
        if self._settings["eos_policy"] == "between" and not self._document_index:
            counts, ids = counts.copy(), ids[1:]  # none before the first
            counts[0] -= 1
        ends = np.cumsum(counts)
        while at < len(ends):
            start = ends[at] - counts[at]
            full = int(np.searchsorted(ends, start + self._shard_tokens - self._tokens))
            stop = min(full + 1, len(ends))  # the document that fills the shard is in it
            self._parts.append(ids[start : ends[stop - 1]])
            self._tokens += int(ends[stop - 1] - start)
            self._count(documents, at, stop)
            at = stop
            if self._tokens >= self._shard_tokens:
                self._close_shard()

    def finish(self, token_bytes: np.ndarray, notes: dict[str, Any]) -> None:
        """Write the last shard, the sidecar and the manifest; `notes` go into the manifest.

        Raises:
          ShardError: there were fewer documents than when the folder was begun, or no token.
        """
        if self._passed < len(self._finished):
            self._refuse_changed()
        if not self._tokens and not any(entry["tokens"] for entry in self._finished):
            self._refuse_empty()
        self._begin()
        if self._documents:
            self._close_shard()
        totals: dict[str, Any] = {
            key: sum(entry[key] for entry in self._finished)
            for key in ("tokens", "documents", "bytes")
        }
        table = io.BytesIO()
        np.save(table, token_bytes)
        write_bytes(self.folder / TOKEN_BYTES, table.getvalue())
        manifest = self._settings | totals | notes | {"shards": self._finished}
        write_json(self.folder / NAME, manifest)
        (self.folder / UNFINISHED).unlink()

    @property
    def _shard_tokens(self) -> int:
        return self._settings["shard_tokens"]

    def _begin(self) -> None:
        """Mark the folder as unfinished: the first change to it, made when nothing was refused."""
        if self._begun:
            return
        self._begun = True
        write_json(self.folder / UNFINISHED, self._settings | {"shards": self._finished})
        (self.folder / NAME).unlink(missing_ok=True)
        self._remove_leftovers()

    def _start_shard(self) -> None:
        self._parts: list[np.ndarray] = []
        self._tokens = self._documents = self._bytes = 0
        self._digest = hashlib.sha256()

    def _pass(self, documents: Encoded) -> int:
        """Compare the leading documents with those of finished shards. Returns how many are."""
        at, total = 0, len(documents.sizes)
        while at < total and self._passed < len(self._finished):
            entry = self._finished[self._passed]
            stop = min(total, at + entry["documents"] - self._documents)
            self._count(documents, at, stop)
            at = stop
            if self._documents == entry["documents"]:
                found = self._bytes, self._digest.hexdigest()
                if found != (entry["bytes"], entry["documents_sha256"]):
                    self._refuse_changed()
                self._passed += 1
                self._start_shard()
        return at

    def _passed_all_but_last_is_short(self) -> bool:
        """Whether more documents come behind a shard that only the corpus's end can have closed."""
        if self._begun or not self._finished:
            return False
        return self._finished[-1]["tokens"] < self._shard_tokens

    def _count(self, documents: Encoded, start: int, stop: int) -> None:
        self._documents += stop - start
        self._document_index += stop - start
        self._bytes += int(documents.sizes[start:stop].sum())
        self._digest.update(documents.digests[start:stop].tobytes())

    def _close_shard(self) -> None:
        name, digest = shard_name(len(self._finished)), hashlib.sha256()
        with atomic_write(self.folder / name) as file:
            for part in self._parts:
                data = part.astype("<u4", copy=False).data
                digest.update(data)
                file.write(data)
        entry: dict[str, Any] = {
            "name": name,
            "tokens": self._tokens,
            "documents": self._documents,
            "bytes": self._bytes,
            "sha256": digest.hexdigest(),
            "documents_sha256": self._digest.hexdigest(),
        }
        self._finished.append(entry)
        self._passed += 1
        write_json(self.folder / UNFINISHED, self._settings | {"shards": self._finished})
        self._start_shard()

    def _find_finished(self) -> list[dict[str, Any]]:
        """The entries of the leading shards that are whole."""
        record = next(
            (path for name in (NAME, UNFINISHED) if (path := self.folder / name).exists()), None
        )
        if record is None:
            foreign = next(self.folder.glob("*.bin"), None)
            if foreign:
                raise ShardError(
                    f"{self.folder}: holds {foreign.name} of another run or program; choose "
                    "another --out or empty the folder"
                )
            return []
        found = read_json(record)
        if not is_record(found):
            raise ShardError(f"{record}: is damaged; choose another --out or empty the folder")
        different = [key for key in self._settings if found.get(key) != self._settings[key]]
        if different:
            raise ShardError(
                f"{self.folder}: holds shards of other settings "
                f"({different[0]}={found.get(different[0])!r}, now "
                f"{self._settings[different[0]]!r}); choose another --out or empty the folder"
            )
        whole: list[dict[str, Any]] = []
        for entry in found["shards"]:
            path = self.folder / entry["name"]
            if not _is_whole(path, entry):
                break
            whole.append(entry)
        return whole

    def _remove_leftovers(self) -> None:
        """Remove what a cut-off run left: half-written files and shards it had not listed."""
        listed = {entry["name"] for entry in self._finished}
        for path in [*self.folder.glob(".*.part"), *self.folder.glob("shard-*.bin")]:
            if path.name not in listed:
                path.unlink()

    def _refuse_empty(self) -> NoReturn:
        """Refuse to finish, and leave no shards that are waiting for more."""
        unfinished = self.folder / UNFINISHED
        if unfinished.exists():
            self._remove_leftovers()
            unfinished.unlink()
        found, split = counted(self._document_index, "document"), self._settings["split"]
        problem = f"{self.folder}: not one token fell to this folder ({found})"
        if split is None:
            raise ShardError(f"{problem}: more input is needed")
        change = "larger" if split["part"] == "val" else "smaller"
        done = "; the shards of --out are complete" if split["part"] == "val" else ""
        raise ShardError(
            f"{problem} with val_fraction={split['val_fraction']}{done}: for both folders give "
            f"more input or a {change} --val_fraction, and empty or new folders"
        )

    def _refuse_changed(self) -> NoReturn:
        raise ShardError(
            f"{self.folder}: holds shards of other documents: the input has changed since; choose "
            "another --out or empty the folder"
        )


def _is_whole(path: pathlib.Path, entry: dict[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != 4 * entry["tokens"]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
