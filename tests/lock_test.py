"""One run at a time in a folder, and nobody in the way of it who is dead."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from apr_jax.files import WriteError
from apr_jax.lock import FolderBusy, locked

HOLD = """
import sys
from apr_jax.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_the_second_is_refused_and_told_who_is_there(tmp_path, holder):
    who = rf"out: process {holder.pid} on {socket.gethostname()} is writing here"
    for _ in range(2):
        with pytest.raises(FolderBusy, match=who), locked(tmp_path / "out"):
            pass
    holder.stdin.close()
    assert holder.wait() == 0
    assert not (tmp_path / "out").exists()  # it was made for the lock, and nothing came into it


def test_what_a_killed_run_leaves_is_in_nobody_s_way(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    with locked(tmp_path / "out"):
        (tmp_path / "out" / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_a_lock_that_was_removed_while_it_was_opened_is_not_taken(tmp_path, monkeypatch):
    flock, path = fcntl.flock, tmp_path / ".lock"

    def after_its_owner_has_gone(descriptor, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(descriptor, how)
        path.unlink()

    monkeypatch.setattr(fcntl, "flock", after_its_owner_has_gone)
    with locked(tmp_path):
        with pytest.raises(FolderBusy, match=f"process {os.getpid()} on"), locked(tmp_path):
            pass


def test_on_a_full_disk_it_is_a_lock_and_let_go_of(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    for _ in range(2):
        with locked(tmp_path):
            with pytest.raises(FolderBusy, match="another process is writing"), locked(tmp_path):
                pass


def test_a_path_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WriteError, match="is not a folder, or lies in none"), locked(path):
            pass


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text
