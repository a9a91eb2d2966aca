"""Files appear whole or not at all."""

import errno
import json
import os

import pytest

from apr_jax.errors import UserError
from apr_jax.files import WriteError, atomic_write, read_json, write_bytes, write_json


def test_an_error_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"file: cannot be written \(No space left on device\)"):
        write_bytes(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(WriteError, match="Is a directory"):
        write_bytes(tmp_path / "file", b"new")


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_json_round_trip_and_what_json_cannot_hold(tmp_path):
    value = {"name": "café", "list": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"loss": float("nan")})


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b""])
def test_what_is_no_json_is_one_line(tmp_path, text):
    (tmp_path / "bad.json").write_bytes(text)
    with pytest.raises(UserError, match=r"bad\.json: not valid JSON"):
        read_json(tmp_path / "bad.json")


def test_names_of_files_need_not_be_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"path": "imp\udce9.apr"})
    assert read_json(tmp_path / "a.json") == {"path": "imp\udce9.apr"}


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "none.json")


def test_json_is_utf8_without_escapes(tmp_path):
    write_json(tmp_path / "a.json", "é")
    assert json.loads((tmp_path / "a.json").read_bytes()) == "é"
    assert "é".encode() in (tmp_path / "a.json").read_bytes()
