"""One run at a time in a folder."""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
from collections.abc import Iterator

from apr_jax.errors import UserError
from apr_jax.files import WriteError, target_path

NAME = ".lock"


class FolderBusy(UserError):
    """Another run is writing into the folder."""


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs out of the folder, which is made if it is not there.

    The system holds the lock for this process and lets go of it when the process ends, however it
    ends, so that what a killed run leaves of it is in nobody's way. Where the file system knows no
    locks, as some shared over a network, a warning says so.

    Raises:
      FolderBusy: names the process and the machine of the other run.
      WriteError: the path is no folder, or cannot be written to.
    """
    path = target_path(folder) / NAME
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise WriteError(f"{folder}: is not a folder, or lies in none: choose another") from error
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written to ({error.strerror})") from error
    try:
        with contextlib.suppress(OSError):  # on a full disk it is a lock all the same
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            if is_new:
                path.parent.rmdir()  # which fails if there is anything in it
        os.close(descriptor)


def _open_locked(path: pathlib.Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            # The one who had the lock before may have removed the file since it was opened here.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 500).decode(errors="replace").strip() or "another process"
        raise FolderBusy(
            f"{path.parent}: {holder} is writing here: wait until it has ended, or choose another "
            "folder"
        ) from error
    except OSError as error:
        logging.getLogger(__name__).warning(
            "%s: cannot be locked (%s): see to it that nothing else writes there",
            path.parent,
            error.strerror,
        )
