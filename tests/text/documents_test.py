"""Reading a corpus: what is a document, what is skipped, what is an error and where."""

import gzip
import json
import os
import sys

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.text import blocks, compressed, parquet
from apr_jax.text.compressed import CorpusError
from apr_jax.text.documents import read_documents
from apr_jax.text.sources import find_sources
from tests.text.samples import COMPRESS, table


def test_lines_of_json_end_at_line_feeds_only(tmp_path):
    texts = ["a\u2028b\u2029c\u0085d", "x\r\ny", "", 'quote " and \u00e9', "\U0001f999"]
    lines = [json.dumps({"content": text, "n": 1}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b"\r\n\n  \n")
    documents = read_documents([tmp_path / "a.jsonl"])
    assert list(documents) == texts
    assert list(documents) == texts  # and again
    assert documents.count == 5
    assert documents.skipped == {"blank": 2, "no_field": 0, "hidden": 0, "bad": 0}


def test_the_field_can_be_chosen_and_its_absence_is_counted(tmp_path):
    rows = [{"text": "a", "content": "z"}, {"content": "b"}, {"text": 5}, {"text": None}, "s", []]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = read_documents([tmp_path / "a.jsonl"], "text")
    assert list(documents) == ["a"]
    assert documents.skipped["no_field"] == 5
    with pytest.raises(
        CorpusError, match=r"no document in 1 file: skipped 0 blank, 6 no_field,.*'body'"
    ):
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
    (b'{"content": ', r"not valid JSON \(Expecting value at character 13\)"),
    (b'{"content": "a', r"not valid JSON \(Unterminated string starting at character 13\)"),
    (b'{"content": NaN}', "not valid JSON .NaN is not JSON"),
    (b'{"content": "\xff"}', r"not valid JSON \(invalid start byte of UTF-8 at byte 14\)"),
    (b'\xef\xbb\xbf{"content": "x"}', "not valid JSON"),
    (b'{"content": "a\\ud800"}', "lone surrogate at character 1"),
    (b"[" * 100_000, r"not valid JSON \(nested too deeply\)"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_named_and_may_be_skipped(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"content": "one"}\n\n' + line + b'\n{"content": "two"}\n')
    with pytest.raises(CorpusError, match=rf"a\.jsonl:3: {reason}.*--max_bad \(now 0\)"):
        list(read_documents([path]))
    documents = read_documents([path], max_bad=1)
    assert list(documents) == ["one", "two"]
    assert documents.skipped == {"blank": 1, "no_field": 0, "hidden": 0, "bad": 1}
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


def test_a_file_with_nul_bytes_counts_as_bad(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"ok\0")
    (tmp_path / "b.jsonl").write_bytes(b'{"content": "a\\u0000"}')
    with pytest.raises(CorpusError, match=r"a\.bin: not text \(NUL at byte 2\)"):
        list(read_documents([tmp_path]))
    assert list(read_documents([tmp_path], max_bad=1)) == ["a\0"]


def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path):
    for name in (".git/HEAD", ".git/objects/a", "src/.DS_Store", "src/a.txt", ".b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    documents = read_documents([tmp_path])
    assert list(documents) == ["src/a.txt"]
    assert documents.skipped["hidden"] == 3
    assert list(read_documents([tmp_path / ".b.txt", tmp_path / ".git"])) == [
        ".b.txt",
        ".git/HEAD",
        ".git/objects/a",
    ]
    (tmp_path / "src" / "a.txt").unlink()
    with pytest.raises(CorpusError, match="holds no files but hidden ones"):
        read_documents([tmp_path / "src"])


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    mark = "\ufeff".encode()
    (tmp_path / "a.txt").write_bytes(mark + b"text\xef\xbb\xbf")
    (tmp_path / "b.jsonl").write_bytes(mark + lines_of(["line"]))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(mark + lines_of(["line"])))
    assert list(read_documents([tmp_path])) == ["text\ufeff", "line", "line"]


def test_what_cannot_be_read_is_refused_before_reading(tmp_path):
    with pytest.raises(CorpusError, match="no such file or folder"):
        read_documents([tmp_path / "nowhere"])
    with pytest.raises(CorpusError, match="holds no files"):
        read_documents([tmp_path])
    for name in ("a.zip", "a.tar.gz", "a.TGZ"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(CorpusError, match=f"{name}: .* archives cannot be read: unpack it"):
            read_documents([tmp_path])
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would wait for ever
    for path in (tmp_path, tmp_path / "pipe.jsonl"):
        with pytest.raises(CorpusError, match=r"pipe\.jsonl: is not a regular file"):
            read_documents([path])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.zst"])
def test_what_is_gone_when_it_is_read_is_told(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"x")
    documents = read_documents([path])
    path.unlink()
    with pytest.raises(CorpusError, match=r"a\..*: cannot be read \(No such file or directory\)$"):
        list(documents)


def test_numbers_of_a_line_may_be_of_any_length(tmp_path):
    line = b'{"n": ' + b"9" * 5000 + b', "content": "x"}\n{"content": 5}\n'
    (tmp_path / "a.jsonl").write_bytes(line)
    documents = read_documents([tmp_path / "a.jsonl"])
    assert [*documents] == ["x"]
    assert documents.skipped["no_field"] == 1


def test_json_lines_are_not_taken_for_one_text(tmp_path):
    for name in ("a.ndjson", "b.json", "c.json.gz"):
        data = b'{"content": "x"}\n' * 2
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [*read_documents([tmp_path / "a.ndjson"])] == ["x", "x"]
    for path in (tmp_path / "b.json", tmp_path / "c.json.gz", tmp_path):
        with pytest.raises(CorpusError, match=r"json.*: may be JSON lines, or one text"):
            read_documents([path])
    (tmp_path / "c.json.gz").unlink()
    assert len([*read_documents([tmp_path])]) == 3


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.txt").write_text("a")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one").symlink_to(tmp_path / "data")
    (tmp_path / "corpus" / "two.txt").symlink_to(tmp_path / "data" / "deep" / "a.txt")
    assert list(read_documents([tmp_path / "corpus"])) == ["a", "a"]
    (tmp_path / "data" / "back").symlink_to(tmp_path / "corpus")
    with pytest.raises(CorpusError, match="leads back to a folder above"):
        read_documents([tmp_path / "corpus"])


def lines_of(texts):
    return "".join(json.dumps({"content": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_unpacked_on_the_way(tmp_path, monkeypatch, suffix):
    texts = [f"text {number} é\n" * (number % 9) for number in range(400)]
    compress = COMPRESS[suffix]
    half = len(lines_of(texts[:200]))
    # Several streams in one file, as `cat` and parallel compressors make them.
    data = lines_of(texts)
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(
        compress(data[: half - 9]) + compress(b"") + compress(data[half - 9 :])
    )
    (tmp_path / f"b.txt.{suffix}").write_bytes(compress("whole\né".encode()))
    for piece, block in ((1 << 22, 8 << 20), (50, 300), (7, 40)):
        monkeypatch.setattr(compressed, "_PIECE", piece)
        monkeypatch.setattr(compressed, "_FEED", piece)
        monkeypatch.setattr(blocks, "BLOCK", block)
        documents = read_documents([tmp_path])
        assert list(documents) == [*texts, "whole\né"]
        assert documents.skipped.total() == 0
        sources = find_sources([tmp_path]).files
        cut = list(blocks.cut(sources, "content"))
        assert sum(part.size for part in cut) == sum(source.size for source in sources)
        assert (len(cut) > 2) == (block < 8 << 20)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_damaged_compressed_files_are_named(tmp_path, suffix, damage):
    data = bytearray(COMPRESS[suffix](lines_of([str(number) for number in range(5000)])))
    if damage == "cut":
        del data[-20:]
    elif damage == "changed":
        data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    else:
        data = b"not compressed at all"
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(data)
    # zstd's frames have no checksum unless asked for: a change may only show in the lines.
    with pytest.raises(CorpusError, match=rf"a\.jsonl\.{suffix}(: cannot be unpacked|:\d+: not )"):
        list(read_documents([path], max_bad=0))


@given(st.binary(max_size=300), st.sampled_from(sorted(COMPRESS)))
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_whatever_a_compressed_file_holds_it_is_one_line(tmp_path_factory, tail, suffix):
    path = tmp_path_factory.mktemp("hostile") / f"a.jsonl.{suffix}"
    path.write_bytes(COMPRESS[suffix](lines_of(["a"])) + tail)
    try:
        assert [*read_documents([path], max_bad=10)].index("a") == 0
    except CorpusError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_the_rows_of_a_parquet_column_are_documents(tmp_path, monkeypatch, kind):
    texts = [None if number % 7 == 3 else f"é{number}" * (number % 5) for number in range(900)]
    wanted = [text for text in texts if text is not None]
    arrow = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    arrow = arrow if kind == "dictionary" else getattr(pyarrow, kind)()
    path = table(tmp_path / "a.parquet", texts, arrow, row_group_size=350)
    for block in (8 << 20, 500):
        monkeypatch.setattr(blocks, "BLOCK", block)
        documents = read_documents([path])
        assert list(documents) == wanted
        assert documents.skipped == {
            "blank": 0,
            "no_field": 900 - len(wanted),
            "hidden": 0,
            "bad": 0,
        }
        cut = list(blocks.cut(find_sources([path]).files, "content"))
        assert sum(part.size for part in cut) == path.stat().st_size
        assert (len(cut) > 1) == (block == 500)


def test_long_rows_of_a_parquet_column_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    texts = [f"{number}" * 400 for number in range(10, 30)]
    path = table(tmp_path / "a.parquet", texts, row_group_size=7)
    for most, rows in ((8 << 20, 20), (2000, 2), (1, 1)):
        monkeypatch.setattr(parquet, "_BYTES", most)
        batches = [len(starts) - 1 for _, starts, _, _ in parquet.read_column(path, "content")]
        assert sum(batches) == 20 and max(batches) <= rows
        assert list(read_documents([path])) == texts


def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet", ["a"], name="text")
    with pytest.raises(
        CorpusError, match=r"no column 'content' that holds text: give --.* of 'text'"
    ):
        list(read_documents([path]))
    with pytest.raises(CorpusError, match=r"'other' holds int64, not text: give --.*one of 'text'"):
        list(read_documents([path], "other"))
    bad = pyarrow.array([b"ok", b"\xff"]).view(pyarrow.string())
    table(path, bad)
    with pytest.raises(CorpusError, match=r"a\.parquet: text 2: not UTF-8"):
        list(read_documents([path]))
    assert list(read_documents([path], max_bad=1)) == ["ok"]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CorpusError, match="cannot be read as Parquet"):
        list(read_documents([path]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"needs pyarrow: pip install 'apr-jax\[parquet\]'"):
        list(read_documents([path]))


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1),
    st.integers(1, 60),
    st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_where_blocks_are_cut_changes_nothing(tmp_path_factory, texts, size, ends):
    path = tmp_path_factory.mktemp("blocks") / "a.jsonl"
    data = lines_of([text for text in texts])
    path.write_bytes(data if ends else data[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        assert list(read_documents([path])) == texts
        path.write_bytes(b"{\n" + data)
        with pytest.raises(CorpusError, match=r"a\.jsonl:1: not valid JSON"):
            list(read_documents([path]))
        path.write_bytes(data + b"\n\n{")
        place = rf"a\.jsonl:{len(texts) + 3}: not valid JSON"
        with pytest.raises(CorpusError, match=place):
            list(read_documents([path]))


def test_one_document_has_to_fit_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_MOST", 1000)
    monkeypatch.setattr(blocks, "BLOCK", 100)
    monkeypatch.setattr(compressed, "_PIECE", 100)
    data = b'{"content": "' + b"a" * 2000 + b'"}\n' + b'{"content": "b"}\n' * 9
    files = {
        "a.jsonl": data,
        "b.txt": data,
        "c.jsonl.gz": gzip.compress(data),
        "d.txt.gz": gzip.compress(data),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=f"{name}: one document of more than"):
            list(read_documents([tmp_path / name]))
