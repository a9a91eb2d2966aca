"""Writing files so that a reader sees the old content or the new, never half of it."""

import contextlib
import errno
import json
import math
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from apr_jax.errors import UserError

MOST_BYTES = 1 << 26
"""Of a file that is read whole: the largest `tokenizer.json` known have some 40 MB."""

_WRITEBACK_BYTES = 1 << 20


class WriteError(UserError):
    """A file could not be written: the disk is full, or the folder cannot be written to."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success sync and rename it, else remove it.

    The file has its path as `name`, so that it can be read back before it gets its own.

    Raises:
      WriteError: the operating system refused; says the path and its reason.
    """
    target = target_path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        )
        os.close(descriptor)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~umask())
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
        _sync_folder(target.parent)
    except OSError as error:
        if _is_foreign(error, target):
            raise  # of a file that the body read
        raise WriteError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes. A pipe, which could block for ever, is an OSError."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise OSError(errno.EINVAL, "its name has a NUL byte", os.fspath(path)) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says so by itself
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
    return open(path, "rb")


def target_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that is to be written.

    Raises:
      WriteError: no system has files of such a name.
    """
    if "\0" in os.fspath(path):
        raise WriteError(f"{path}: cannot be written (its name has a NUL byte)")
    return pathlib.Path(path)


def begin_writeback(file: BinaryIO, offset: int, nbytes: int) -> None:
    """Let the disk begin with what was just written there, so that syncing at the end is short.

    Nothing depends on it. Where the system can, it starts on those bytes and waits for none.
    """
    if nbytes >= _WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
        # Of pages that are not on the disk yet, this advice drops none: it queues them.
        os.posix_fadvise(file.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically. NaN and infinities are refused."""
    write_bytes(
        path,
        (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
            errors="backslashreplace"  # names of files need not be UTF-8
        ),
    )


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file that is read whole.

    Raises:
      UserError: the file cannot be read, or has more than `MOST_BYTES`.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise UserError(f"{path}: has {size:,} bytes, more than {MOST_BYTES:,}")
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value in `path`.

    Raises:
      UserError: the file is missing, has more than `MOST_BYTES`, or is not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def finite(value: float | None) -> float | None:
    """`value`, or None for what JSON cannot hold: infinities and NaN."""
    return value if value is not None and math.isfinite(value) else None


def _is_foreign(error: OSError, target: pathlib.Path) -> bool:
    """Whether the error names a file that is neither `target`, its folder, nor its temporary."""
    if error.filename is None:
        return False
    path = pathlib.Path(os.fsdecode(error.filename))
    return path not in (target, *target.parents) and not path.name.startswith(f".{target.name}.")


def umask() -> int:
    """What this process takes from the permissions of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
