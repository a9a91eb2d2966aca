"""The reader gives the answers of the reference reader on files of the reference writer."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from apr_jax.codec import errors, open_apr, write_apr
from apr_jax.codec.health import required_bytes
from tests.codec.small import DATA

EXPECTED = json.loads((DATA / "expected.json").read_text())
OPENING = {name: entry for name, entry in EXPECTED.items() if entry["aprender"] == "ok"}
REFUSED = {name: entry for name, entry in EXPECTED.items() if entry["aprender"] != "ok"}
ODDITIES = {
    "limits.apr": [errors.SizeMismatch],
    "lz4_flag_uncompressed.apr": [errors.MisleadingFlags],
    "bad_truncated_data.apr": [errors.TensorOutOfFile],
    "bad_offset_past_eof.apr": [errors.TensorOutOfFile],
    "odd_footer_wrong.apr": [errors.FooterMismatch],
    "odd_tensor_byte_flipped.apr": [errors.FooterMismatch],
    "odd_alias_duplicate.apr": [errors.MetadataAlias],
    "legacy_null_alias.apr": [errors.MetadataAlias],
    "qwen2_bf16_tagged_f16.apr": [errors.Mislabelled] * 26,
}
LEAF_CLASSES = {
    "bad_magic_APR2.apr": errors.InvalidMagic,
    "bad_checksum.apr": errors.ChecksumMismatch,
    "bad_truncated_header.apr": errors.FileTooShort,
    "bad_truncated_metadata.apr": errors.MetadataOutOfFile,
    "bad_dtype_2.apr": errors.UnknownDtype,
    "bad_unsorted_index.apr": errors.UnsortedIndex,
    "bad_column_major.apr": errors.ColumnMajor,
    "bad_metadata_json.apr": errors.MetadataError,
}


def digest(array):
    array = np.array(array).reshape(-1)
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return hashlib.sha256(array.tobytes()).hexdigest()


def without_long_lists(metadata):
    """`expected.json` says '<n items, see the file>' where the metadata holds a long list."""
    return {
        k: v for k, v in metadata.items() if k not in ("tokenizer.vocabulary", "tokenizer.merges")
    }


@pytest.mark.parametrize("name", OPENING)
def test_header_metadata_and_index(name):
    expected = OPENING[name]
    with open_apr(DATA / name) as file:
        header = dataclasses.asdict(file.header)
        infos = [file.info(tensor) for tensor in file.names]
        assert header | {"version": list(header["version"])} == expected["header"]
        assert without_long_lists(file.metadata) == without_long_lists(expected["metadata"])
        assert file.metadata.keys() == expected["metadata"].keys()
        assert required_bytes(file.header, infos) == expected["required_bytes"]
    found = [(i.name, i.dtype.lower(), list(i.shape), i.offset, i.nbytes) for i in infos]
    assert found == [
        (e["name"], e["dtype"], e["shape"], e["offset"], e["size"]) for e in expected["index"]
    ]


@pytest.mark.parametrize("name", OPENING)
def test_values(name):
    unreadable = []
    with open_apr(DATA / name) as file:
        for entry in OPENING[name]["index"]:
            tensor = entry["name"]
            if tensor in OPENING[name]["unreadable"]:
                with pytest.raises(errors.TensorOutOfFile, match=tensor):
                    file.read(tensor)
                unreadable.append(tensor)
                continue
            assert hashlib.sha256(file.raw(tensor)).hexdigest() == entry["raw_sha256"]
            if "values_sha256" in entry:
                assert digest(file.read(tensor)) == entry["values_sha256"]
            else:
                assert digest(file.read(tensor, np.float32)) == entry["float32_sha256"]
    assert unreadable == OPENING[name]["unreadable"]


@pytest.mark.parametrize("name", OPENING)
def test_problems_are_listed_and_refused_when_strict(name):
    wanted = ODDITIES.get(name, [])
    with open_apr(DATA / name) as file:
        assert [type(problem) for problem in file.problems] == wanted
    if wanted:
        with pytest.raises(wanted[0], match=name):
            open_apr(DATA / name, strict=True)
    else:
        open_apr(DATA / name, strict=True).close()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_an_error_of_the_same_kind(name):
    kind = REFUSED[name]["aprender"].removeprefix("error ").split("(")[0]
    with pytest.raises(getattr(errors, kind), match=name) as caught:
        open_apr(DATA / name)
    assert type(caught.value) is LEAF_CLASSES[name]
    assert "\n" not in str(caught.value)


def test_reading_makes_read_only_views_that_outlive_the_file():
    with open_apr(DATA / "half_special.apr") as file:
        bf16, f16 = file.read("bf16.bits"), file.read("f16.bits")
        copy = file.read("bf16.bits", np.float32)
    assert bf16.dtype == ml_dtypes.bfloat16 and f16.dtype == np.float16
    assert not bf16.flags.writeable and not bf16.flags.owndata
    assert copy.flags.writeable
    np.testing.assert_array_equal(bf16.view(np.uint16)[np.isnan(bf16)] & 0x7F80, 0x7F80)
    np.testing.assert_array_equal(bf16[~np.isnan(bf16)], copy[~np.isnan(copy)])


def test_a_closed_file_and_an_absent_tensor_are_named():
    with open_apr(DATA / "f32_tiny.apr") as file:
        with pytest.raises(KeyError, match=r"f32_tiny.apr: tensor 'nope': .* 4 tensors"):
            file.read("nope")
    with pytest.raises(errors.ClosedError, match="f32_tiny"):
        file.read("weight")


def test_absent_file(tmp_path):
    with pytest.raises(errors.Unreadable, match=r"none.apr: .*No such file"):
        open_apr(tmp_path / "none.apr")


def test_opening_does_not_read_the_data(tmp_path):
    path = tmp_path / "a.apr"
    write_apr(path, {"a": np.zeros(1 << 20, np.float32)}, {})
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    with open_apr(path) as file:
        assert "problems" not in vars(file)
        assert [type(problem) for problem in file.problems] == [errors.FooterMismatch]


def test_the_room_needs_no_jax():
    code = "import sys, apr_jax.codec; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
