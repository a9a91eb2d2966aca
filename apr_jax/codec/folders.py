"""Folders that appear under their name only when complete; the files that travel with a model."""

import contextlib
import ctypes
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping

from apr_jax.codec.errors import FolderInUse
from apr_jax.files import WriteError

# What belongs to a model besides its tensors and config.json.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)

_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag, as Linux has them


def tokenizer_folder(apr: str | os.PathLike[str]) -> pathlib.Path:
    """Where the companions of `NAME.apr` lie: `NAME.tokenizer/` beside it."""
    return pathlib.Path(apr).with_suffix(".tokenizer")


def companions(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The tokenizer and generation files that `folder` has."""
    paths = (pathlib.Path(folder) / name for name in COMPANIONS)
    return [path for path in paths if path.is_file()]


def require_only(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Refuse a path that is not a folder, or a folder with other files than `names`.

    Raises:
      FolderInUse: names the first such file.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise FolderInUse(folder, "is not a folder; choose another path")
    if others := {entry.name for entry in folder.iterdir()} - set(names):
        raise FolderInUse(
            folder, f"holds {min(others)!r}, which is not to be replaced; choose an empty folder"
        )


def replace_companions(files: Mapping[str, bytes], folder: pathlib.Path) -> None:
    """Make `folder` hold `files`, content by name, and nothing else; without files it goes."""
    if files:
        with atomic_folder(folder) as new:
            write_files(files, new)
    elif folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def write_files(files: Mapping[str, bytes], folder: pathlib.Path) -> None:
    """Write `files`, content by name, into `folder`."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Fill a temporary folder beside `path`; on success sync it and put it in the place of `path`.

    A process killed on the way leaves the old folder or the new one. Where the system cannot
    exchange two names in one step, one killed between two steps leaves the old one under a name
    that ends in `.part/old`.

    Raises:
      WriteError: the operating system refused; says the path and its reason.
    """
    target = pathlib.Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        ) as work:
            new, old = pathlib.Path(work) / "new", pathlib.Path(work) / "old"
            new.mkdir()
            yield new
            for file in new.iterdir():
                _sync(file)
            _sync(new)
            if not target.exists():
                new.rename(target)
            elif not _exchange(new, target):
                target.rename(old)
                try:
                    new.rename(target)
                except BaseException:
                    old.rename(target)
                    raise
            _sync(target.parent)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Let two names change places in one step; False where the system has no such call."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    names = (_HERE, os.fsencode(one), _HERE, os.fsencode(other))
    return call is not None and call(*names, _RENAME_EXCHANGE) == 0


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
