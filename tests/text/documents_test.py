"""Reading a corpus: what is a document, what is skipped, what is an error and where."""

import json

import pytest

from apr_jax.text.documents import CorpusError, read_documents


def test_lines_of_json_end_at_line_feeds_only(tmp_path):
    texts = ["a\u2028b\u2029c\u0085d", "x\r\ny", "", 'quote " and \u00e9', "\U0001f999"]
    lines = [json.dumps({"content": text, "n": 1}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b"\r\n\n  \n")
    documents = read_documents([tmp_path / "a.jsonl"])
    assert list(documents) == texts
    assert list(documents) == texts  # and again
    assert documents.count == 5
    assert documents.skipped == {"blank": 2, "no_field": 0, "bad": 0}


def test_the_field_can_be_chosen_and_its_absence_is_counted(tmp_path):
    rows = [{"text": "a", "content": "z"}, {"content": "b"}, {"text": 5}, {"text": None}, "s", []]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = read_documents([tmp_path / "a.jsonl"], "text")
    assert list(documents) == ["a"]
    assert documents.skipped["no_field"] == 5
    with pytest.raises(CorpusError, match=r"no document in 1 files: .*'no_field': 6.*'body'"):
        list(read_documents([tmp_path / "a.jsonl"], "body"))


def test_files_are_documents_and_folders_all_files_below_them(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.py").write_bytes(b"x = 1\r\n")
    (tmp_path / "b" / "a.txt").write_bytes("é\n".encode())
    (tmp_path / "a.md").write_bytes(b"")
    (tmp_path / "c.jsonl").write_bytes(b'{"content": "line"}\n')
    assert list(read_documents([tmp_path])) == ["", "é\n", "x = 1\r\n", "line"]
    assert list(read_documents([tmp_path / "c.jsonl", tmp_path / "b"])) == [
        "line",
        "é\n",
        "x = 1\r\n",
    ]


BAD_LINES = [
    (b'{"content": ', "not valid JSON"),
    (b'{"content": NaN}', "not valid JSON .NaN is not JSON"),
    (b'{"content": "\xff"}', "not valid JSON .*utf-8"),
    (b'\xef\xbb\xbf{"content": "x"}', "not valid JSON"),
    (b'{"content": "a\\ud800"}', "lone surrogate at character 1"),
    (b"[" * 100_000, "not valid JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_named_and_may_be_skipped(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"content": "one"}\n\n' + line + b'\n{"content": "two"}\n')
    with pytest.raises(CorpusError, match=rf"a\.jsonl:3: {reason}.*--max_bad \(now 0\)"):
        list(read_documents([path]))
    documents = read_documents([path], max_bad=1)
    assert list(documents) == ["one", "two"]
    assert documents.skipped == {"blank": 1, "no_field": 0, "bad": 1}
    assert len(documents.bad) == 1
    assert "a.jsonl:3" in documents.bad[0]


def test_a_file_that_is_no_text_counts_as_bad(tmp_path):
    (tmp_path / "a.pyc").write_bytes(b"ok\xff\xfe")
    (tmp_path / "b.txt").write_bytes(b"text")
    with pytest.raises(CorpusError, match=r"a\.pyc: not UTF-8 text \(.* at byte 2\)"):
        list(read_documents([tmp_path]))
    documents = read_documents([tmp_path], max_bad=3)
    assert list(documents) == ["text"]
    assert documents.skipped["bad"] == 1


def test_what_cannot_be_read_is_refused_before_reading(tmp_path):
    with pytest.raises(CorpusError, match="no such file or folder"):
        read_documents([tmp_path / "nowhere"])
    with pytest.raises(CorpusError, match="holds no files"):
        read_documents([tmp_path])
    for name in ("a.parquet", "a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(CorpusError, match=f"{name}: .* cannot be read yet"):
            read_documents([tmp_path / name])
        with pytest.raises(CorpusError, match="cannot be read yet"):
            read_documents([tmp_path])
        (tmp_path / name).unlink()
