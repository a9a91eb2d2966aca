"""Corpora to shards: the bytes, the manifest, resuming, and what is refused."""

import collections
import dataclasses
import errno
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from apr_jax.errors import UserError
from apr_jax.lock import locked
from apr_jax.text import blocks, load_tokenizer
from apr_jax.text import statistics as statistics_lib
from apr_jax.text.batches import Shards
from apr_jax.text.corpus import CorpusConfig, encode_corpus, split_of
from apr_jax.text.hex_format import write_hex
from apr_jax.text.manifest import ShardError
from apr_jax.text.statistics import statistics
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.trainer import train_bpe

TEXTS = [f"def f{i}(x):\n    return x + {i} * 'café{i % 7}'\n" * (i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a hex tokenizer and a corpus in JSONL."""
    folder = tmp_path_factory.mktemp("corpus")
    write_hex(folder / "hex", train_bpe(TEXTS, 300).vocabulary)
    lines = [json.dumps({"content": text}) for text in TEXTS]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder


@pytest.fixture
def config(place, tmp_path):
    return CorpusConfig(
        inputs=(str(place / "corpus.jsonl"),),
        tokenizer=str(place / "hex"),
        out=str(tmp_path / "out"),
        shard_tokens=200,
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def shards_of(folder):
    return [
        np.fromfile(path, "<u4").tolist() for path in sorted(pathlib.Path(folder).glob("*.bin"))
    ]


@pytest.mark.parametrize("policy", ["after", "between", "none"])
def test_shards_hold_the_ids_of_whole_documents(config, policy):
    report = encode_corpus(dataclasses.replace(config, eos_policy=policy))
    tokenizer = load_tokenizer(config.tokenizer)
    expected, shard = [], []
    for number, text in enumerate(TEXTS):
        before = [2] if policy == "between" and number else []
        after = [2] if policy == "after" else []
        shard += [*before, *tokenizer.encode(text).tolist(), *after]
        if len(shard) >= 200:
            expected.append(shard)
            shard = []
    expected.append(shard)
    assert shards_of(config.out) == expected
    assert report["shards"] == len(expected) > 2
    assert report["tokens"] == sum(map(len, expected))
    assert Shards(config.out).eos_id == (None if policy == "none" else 2)


def test_the_manifest_tells_all(config):
    encode_corpus(config)
    manifest = json.loads(pathlib.Path(config.out, "manifest.json").read_text())
    tokenizer = load_tokenizer(config.tokenizer)
    assert manifest["tokenizer_sha256"] == tokenizer.sha256
    assert manifest["vocab_size"] == 300
    assert (manifest["eos_id"], manifest["eos_policy"]) == (2, "after")
    assert manifest["normalization"] == "nfc"
    assert manifest["documents"] == len(TEXTS)
    assert manifest["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest["skipped"] == {"blank": 1, "no_field": 0, "hidden": 0, "bad": 0}
    for key in ("tokens", "documents", "bytes"):
        assert manifest[key] == sum(shard[key] for shard in manifest["shards"])
    shards = Shards(config.out)
    ids = shards.read(0, shards.num_tokens)
    assert shards.token_bytes[ids].sum() == manifest["bytes"]
    assert {path.suffix for path in pathlib.Path(config.out).iterdir()} == {".bin", ".json", ".npy"}


def test_statistics_are_counted_in_the_shards(config, qwen_file):
    report = encode_corpus(dataclasses.replace(config, tokenizer=str(qwen_file)))
    ids = [id_ for shard in shards_of(config.out) for id_ in shard]
    shares = [count / len(ids) for count in collections.Counter(ids).values()]
    assert report["entropy_bits"] == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert report["distinct_tokens"] == len(shares)
    assert report["single_space_fraction"] == ids.count(220) / len(ids) > 0
    assert report["unk_fraction"] == 0
    assert report["bytes_per_token"] == sum(len(t.encode()) for t in TEXTS) / len(ids)
    assert ids.count(151643) == len(TEXTS)
    assert report["entropy_ceiling_bits"] == math.log2(len(ids))
    assert report["first_window"]["tokens"] == len(ids) < 32_768
    shards = Shards(config.out)
    start, stop = 150, 450  # over the end of a shard
    window, some = statistics(shards, start, stop), ids[start:stop]
    shares = [count / 300 for count in collections.Counter(some).values()]
    assert window["entropy_bits"] == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert (window["start"], window["tokens"]) == (150, 300)
    assert window["distinct_tokens"] == len(shares)
    assert window["bytes_per_token"] == shards.token_bytes[some].sum() / 300
    assert window["single_space_fraction"] == some.count(220) / 300
    for start, stop in ((5, 5), (-1, 4), (0, len(ids) + 1)):
        with pytest.raises(IndexError, match=rf"tokens {start}:{stop} of a stream"):
            statistics(shards, start, stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics_lib, "_SPAN", 70)
        assert statistics(shards, 150, 450, workers=3) == window
    # The original's folders have neither bytes nor names for ids.
    (pathlib.Path(config.out) / "manifest.json").unlink()
    bare = statistics(Shards(config.out))
    assert bare["entropy_bits"] == pytest.approx(report["entropy_bits"])
    assert bare["bytes_per_token"] is bare["unk_fraction"] is None


def test_equal_documents_fall_on_the_same_side(config, tmp_path):
    texts = [*TEXTS, *TEXTS[:20]]
    corpus = tmp_path / "twice.jsonl"
    corpus.write_text("\n".join(json.dumps({"content": text}) for text in texts))
    val_out = str(tmp_path / "val")
    report = encode_corpus(
        dataclasses.replace(config, inputs=(str(corpus),), val_fraction=0.3, val_out=val_out)
    )
    held_out = [text for text in texts if split_of(text.encode(), 0.3)]
    assert report["val"]["documents"] == len(held_out) > 0
    assert report["documents"] == len(texts) - len(held_out) > 0
    tokenizer = load_tokenizer(config.tokenizer)
    ids = [id_ for shard in shards_of(val_out) for id_ in shard]
    assert tokenizer.decode(ids) == "".join(f"{text}</s>" for text in held_out)


def test_the_split_keeps_to_its_fraction():
    documents = [str(number).encode() for number in range(4000)]
    assert not any(split_of(document, 0) for document in documents)
    assert 300 < sum(split_of(document, 0.1) for document in documents) < 500
    tenth = {document for document in documents if split_of(document, 0.1)}
    assert tenth <= {document for document in documents if split_of(document, 0.2)}
    assert split_of(b"", 0.9) == split_of(b"", 0.9)


def test_small_batches_give_the_same_bytes(config, tmp_path, monkeypatch):
    encode_corpus(config)
    monkeypatch.setattr(blocks, "BLOCK", 700)
    encode_corpus(dataclasses.replace(config, out=str(tmp_path / "again")))
    assert contents(tmp_path / "again") == contents(config.out)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_where_it_was_cut_off_change_nothing(config, tmp_path, monkeypatch, workers):
    config = dataclasses.replace(config, val_fraction=0.2, val_out=str(tmp_path / "out_val"))
    report = encode_corpus(config)
    monkeypatch.setattr(blocks, "BLOCK", 1500)
    again = dataclasses.replace(
        config, out=str(tmp_path / "o"), val_out=str(tmp_path / "v"), workers=workers
    )
    assert encode_corpus(again) == report
    before = contents(config.out), contents(config.val_out)
    assert (contents(again.out), contents(again.val_out)) == before
    for kept in (0, 3):  # shards that a first run had finished
        record = json.loads(pathlib.Path(again.out, "manifest.json").read_text())
        record["shards"] = record["shards"][:kept]
        pathlib.Path(again.out, "unfinished.json").write_text(json.dumps(record))
        pathlib.Path(again.out, "manifest.json").unlink()
        assert encode_corpus(again) == report
        assert (contents(again.out), contents(again.val_out)) == before


def test_two_workers_killed_with_their_parent_leave_what_can_be_gone_on_from(config, tmp_path):
    arguments = ["before", "5", config.inputs[0], config.tokenizer]
    outs = [str(tmp_path / "killed"), str(tmp_path / "killed_val")]
    script = KILLED.replace("val_out=sys.argv[6]", "val_out=sys.argv[6], workers=2")
    result = subprocess.run([sys.executable, "-c", script, *arguments, *outs], check=False)
    assert result.returncode == -9
    killed = dataclasses.replace(
        config, shard_tokens=300, val_fraction=0.3, out=outs[0], val_out=outs[1]
    )
    whole = dataclasses.replace(killed, out=config.out, val_out=str(tmp_path / "whole_val"))
    assert encode_corpus(killed) == encode_corpus(whole)
    assert contents(killed.out) == contents(whole.out)
    assert contents(killed.val_out) == contents(whole.val_out)


def test_the_separator_can_be_named(config):
    config = dataclasses.replace(config, eos_token="<mask>")
    encode_corpus(config)
    ids = [id_ for shard in shards_of(config.out) for id_ in shard]
    assert ids.count(4) == len(TEXTS) and 2 not in ids
    for change, message in [
        ({"eos_token": "61"}, "has no special token '61'"),  # only a piece of text
        ({"eos_policy": "none"}, "of no use with eos_policy='none'"),
    ]:
        with pytest.raises(UserError, match=message):
            encode_corpus(dataclasses.replace(config, **change))


def test_corpora_of_the_original_s_older_encoder_can_be_made_again(config, qwen_file):
    config = dataclasses.replace(
        config, tokenizer=str(qwen_file), eos_policy="between", compat="aprender-1598"
    )
    report = encode_corpus(config)
    old = load_tokenizer(qwen_file, compat="aprender-1598")
    ids = [id_ for shard in shards_of(config.out) for id_ in shard]
    between = [[128247, *old.encode(text).tolist()] for text in TEXTS]
    assert ids == [id_ for document in between for id_ in document][1:]
    manifest = json.loads(pathlib.Path(config.out, "manifest.json").read_text())
    assert report["compat"] == manifest["compat"] == "aprender-1598"
    assert report["normalization"] == "none"


KILLED = """
import os, signal, sys
when, count = sys.argv[1], int(sys.argv[2])
replace, calls = os.replace, 0
def killing_replace(source, target):
    global calls
    calls += 1
    if when == "after":
        replace(source, target)
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "before":
        replace(source, target)
os.replace = killing_replace
from apr_jax.text import blocks, corpus
blocks.BLOCK = 300
corpus.encode_corpus(corpus.CorpusConfig(
    inputs=(sys.argv[3],), tokenizer=sys.argv[4], out=sys.argv[5], shard_tokens=300,
    val_fraction=0.3, val_out=sys.argv[6]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_again_and_again_it_writes_the_same_bytes(config, tmp_path, when):
    config = dataclasses.replace(
        config, shard_tokens=300, val_fraction=0.3, val_out=str(tmp_path / "out_val")
    )
    encode_corpus(config)
    killed = [str(tmp_path / "killed"), str(tmp_path / "killed_val")]
    for count in range(1, 30):  # killed at the first rename, then at the second, ...
        arguments = [when, str(count), config.inputs[0], config.tokenizer, *killed]
        result = subprocess.run(
            [sys.executable, "-c", KILLED, *arguments], stderr=subprocess.PIPE, check=False
        )
        if result.returncode != -9:
            break
    assert result.returncode == 0, result.stderr.decode()
    assert count > 5
    assert contents(killed[0]) == contents(config.out)
    assert contents(killed[1]) == contents(config.val_out)


def test_finished_shards_are_not_encoded_again(config, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    encode_corpus(config)
    before = contents(config.out)
    encoded = []
    encode_flat = Tokenizer.encode_flat

    def counting(self, texts):
        encoded.extend(texts)
        return encode_flat(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_flat", counting)
    encode_corpus(config)
    assert encoded == [" "]  # of which the manifest has the id
    pathlib.Path(config.out, "shard-00001.bin").write_bytes(b"damaged!")
    encoded.clear()
    encode_corpus(config)
    assert contents(config.out) == before
    assert TEXTS[1] not in encoded
    assert TEXTS[-1] in encoded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_tokens": 400}, r"shard_tokens=200, now 400"),
        ({"eos_policy": "between"}, r"eos_policy='after', now 'between'"),
        ({"content_field": "text"}, r"content_field='content', now 'text'"),
    ],
)
def test_shards_of_other_settings_are_refused(config, change, message):
    encode_corpus(config)
    before = contents(config.out)
    with pytest.raises(ShardError, match=message):
        encode_corpus(dataclasses.replace(config, **change))
    assert contents(config.out) == before


@pytest.mark.parametrize(
    "texts",
    [["new", *TEXTS], [*TEXTS, "new"], TEXTS[:-1], TEXTS[1:], TEXTS[:5], [*TEXTS[:-1], "new"]],
)
def test_shards_of_other_documents_are_refused(config, tmp_path, texts):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"content": text}) for text in TEXTS))
    config = dataclasses.replace(config, inputs=(str(corpus),))
    encode_corpus(config)
    before = contents(config.out)
    corpus.write_text("\n".join(json.dumps({"content": text}) for text in texts))
    with pytest.raises(ShardError, match="shards of other documents"):
        encode_corpus(config)
    assert contents(config.out) == before
    Shards(config.out)  # what was finished can still be trained on


def test_a_count_that_is_not_the_shard_s_is_not_taken_over(config):
    encode_corpus(config)
    whole, path = contents(config.out), pathlib.Path(config.out, "manifest.json")
    for key in ("tokens", "bytes"):
        manifest = json.loads(whole["manifest.json"])
        manifest["shards"][1][key] += 1
        path.write_text(json.dumps(manifest))
        if key == "bytes":
            with pytest.raises(ShardError, match="holds shards of other documents"):
                encode_corpus(config)
        else:
            encode_corpus(config)
            assert contents(config.out) == whole


def test_shards_of_another_program_are_refused(config):
    out = pathlib.Path(config.out)
    out.mkdir()
    (out / "shard-00000.bin").write_bytes(b"\0" * 8)
    with pytest.raises(ShardError, match="of another run or program"):
        encode_corpus(config)
    assert contents(out) == {"shard-00000.bin": b"\0" * 8}


def test_a_full_disk_is_one_line_and_loses_nothing_finished(config, monkeypatch):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:  # two a file: of the record, the first shard, the record
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"shard-00001\.bin: .*No space left on device"):
            encode_corpus(config)
    finished = contents(config.out)
    assert "unfinished.json" in finished
    encode_corpus(config)
    after = contents(config.out)
    assert "shard-00000.bin" in finished
    assert after["shard-00000.bin"] == finished["shard-00000.bin"]
    assert len(shards_of(config.out)) > 2


@pytest.mark.parametrize("part", ["out", "val_out"])
def test_two_runs_do_not_write_to_one_folder(config, tmp_path, part):
    config = dataclasses.replace(config, val_fraction=0.3, val_out=str(tmp_path / "val"))
    with locked(getattr(config, part)):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is writing here"):
            encode_corpus(config)
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        encode_corpus(dataclasses.replace(config, **{part: str(tmp_path / "file")}))


def test_a_shard_of_another_folder_is_not_taken_for_its_own(config):
    encode_corpus(config)
    out = pathlib.Path(config.out)
    foreign = out.parent / "n"
    foreign.mkdir()
    (foreign / "shard-00000.bin").write_bytes((out / "shard-00000.bin").read_bytes())
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][0]["name"] = "../n/shard-00000.bin"
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = contents(out)
    with pytest.raises(ShardError, match=r"manifest\.json: is damaged"):
        encode_corpus(config)
    assert contents(out) == before


@pytest.mark.parametrize("eos_policy", ["after", "none"])
def test_a_held_out_folder_without_a_document_is_refused_and_left_empty(
    config, tmp_path, eos_policy
):
    corpus = tmp_path / "corpus.jsonl"
    texts = ["abcdefgh", ""]  # the empty one is held out by a half, and has no token without EOS
    assert [split_of(text.encode(), 0.5) for text in texts] == [False, True]
    corpus.write_text("\n".join(json.dumps({"content": text}) for text in texts))
    fraction, documents = (0.5, "1 document") if eos_policy == "none" else (1e-9, "0 documents")
    val = tmp_path / "val"
    config = dataclasses.replace(
        config,
        inputs=(str(corpus),),
        val_fraction=fraction,
        val_out=str(val),
        eos_policy=eos_policy,
    )
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"\({documents}\) with .* complete: "):
            encode_corpus(config)
        assert not val.exists()
        assert Shards(config.out).num_tokens > 0


def test_the_last_documents_may_be_empty(config, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    texts = ["abcdefgh", "", ""]
    corpus.write_text("\n".join(json.dumps({"content": text}) for text in texts))
    config = dataclasses.replace(config, inputs=(str(corpus),), eos_policy="none", shard_tokens=1)
    for _ in range(2):
        assert encode_corpus(config)["documents"] == 3
    corpus.write_text('{"content": ""}')
    with pytest.raises(ShardError, match=r"not one token fell to this folder \(1 document\)"):
        encode_corpus(dataclasses.replace(config, out=str(tmp_path / "empty")))


def test_no_end_of_text_token_allows_no_policy_but_none(config, place, tmp_path):
    vocab = json.loads((place / "hex" / "vocab.json").read_text())
    del vocab["</s>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_bytes((place / "hex" / "merges.txt").read_bytes())
    config = dataclasses.replace(config, tokenizer=str(tmp_path))
    with pytest.raises(UserError, match=r"has no end-of-text token.*--eos_policy=none"):
        encode_corpus(config)
    assert encode_corpus(dataclasses.replace(config, eos_policy="none"))["tokens"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_tokens": 0}, "shard_tokens=0"),
        ({"eos_policy": "before"}, "eos_policy='before' is not one of"),
        ({"val_fraction": 0.1}, "belong together"),
        ({"val_out": "x"}, "belong together"),
        ({"val_fraction": 1.0, "val_out": "x"}, r"val_fraction=1\.0"),
        ({"val_fraction": -0.1, "val_out": "x"}, r"val_fraction=-0\.1"),
        ({"inputs": ("nowhere",)}, "nowhere: no such file"),
        ({"tokenizer": "nowhere"}, "nowhere: no such file"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(config, change, message):
    with pytest.raises(UserError, match=message):
        encode_corpus(dataclasses.replace(config, **change))
    assert not pathlib.Path(config.out).exists()


def test_output_inside_the_input_or_twice_the_same_is_refused(config, place):
    with pytest.raises(UserError, match="lies inside the input"):
        encode_corpus(
            dataclasses.replace(config, inputs=(str(place),), out=str(place / "hex" / "out"))
        )
    with pytest.raises(UserError, match="must be different folders"):
        encode_corpus(dataclasses.replace(config, val_fraction=0.5, val_out=config.out + "/."))
