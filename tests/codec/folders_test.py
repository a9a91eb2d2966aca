"""Folders appear whole or not at all."""

import os
import pathlib
import sys

import pytest

from apr_jax.codec import folders
from apr_jax.files import WriteError
from tests.codec import small


def fill(target, text):
    with folders.atomic_folder(target) as folder:
        (folder / "file").write_text(text)


def test_a_folder_is_made_and_replaced(tmp_path):
    target = tmp_path / "deep" / "out"
    fill(target, "old")
    (target / "stale").write_text("")
    fill(target, "new")
    assert [path.name for path in target.iterdir()] == ["file"]
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_the_folder_can_be_read_like_any_other(tmp_path):
    (tmp_path / "plain").mkdir()
    fill(tmp_path / "out", "x")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_exception_leaves_the_old_folder(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), folders.atomic_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("new")
        _ = 1 // 0
    assert (tmp_path / "out/file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_both_ways_to_replace_a_folder(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    fill(tmp_path / "out", "old")
    fill(tmp_path / "out", "new")
    assert (tmp_path / "out/file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_interruption_between_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    fill(tmp_path / "out", "old")
    rename = pathlib.Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", "new")
    assert (tmp_path / "out/file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such call")
def test_names_are_exchanged_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert folders._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/b").exists() and (tmp_path / "b/a").exists()


def test_a_link_to_a_folder_stays_one(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/file").read_text() == "new"
    folders.replace_companions({}, tmp_path / "link")
    assert not (tmp_path / "link").exists() and (tmp_path / "real/file").exists()


def test_a_kill_leaves_the_old_folder_or_none(tmp_path):
    program = """
import sys
from apr_jax.codec.folders import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder / "file").write_text("new")
    print("half", flush=True)
    sys.stdin.read()
"""
    small.killed_in_the_middle(program, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    fill(tmp_path / "out", "old")
    small.killed_in_the_middle(program, str(tmp_path / "out"))
    assert (tmp_path / "out/file").read_text() == "old"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file/out: cannot be written"):
        fill(tmp_path / "file" / "out", "x")


def test_companions_lie_beside_the_model(tmp_path):
    assert folders.tokenizer_folder("a/Qwen2.5-0.5B.apr") == pathlib.Path(
        "a", "Qwen2.5-0.5B.tokenizer"
    )
    for name in ("tokenizer.json", "merges.txt", "README.md"):
        (tmp_path / name).write_text("")
    os.mkdir(tmp_path / "vocab.json")
    found = [path.name for path in folders.companions(tmp_path)]
    assert found == ["tokenizer.json", "merges.txt"]
