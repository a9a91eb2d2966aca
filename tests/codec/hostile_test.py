"""Files made to do harm: each ends in an error of the codec's own or in true values, quickly."""

import json
import os
import struct
import zlib

import numpy as np
import pytest

from apr_jax.codec import (
    AprError,
    errors,
    export_checkpoint,
    import_checkpoint,
    metadata,
    open_apr,
    open_checkpoint,
    reader,
    write_apr,
)
from apr_jax.codec.header import HEADER_BYTES, Header
from apr_jax.codec.hf_folder import HfFolder
from apr_jax.errors import UserError
from tests.codec import small
from tests.codec.small import DATA

TINY = (DATA / "f32_tiny.apr").read_bytes()


def open_bytes(tmp_path, data):
    path = tmp_path / "hostile.apr"
    path.write_bytes(data)
    return open_apr(path)


def build(metadata=b"{}", entries=(), data=b"", count=None, **header):
    """A file of these parts; `header` replaces fields, and its checksum is right."""
    index = b"".join(entries)
    fields = {
        "version": (2, 0),
        "flags": 0x0400,
        "tensor_count": len(entries) if count is None else count,
        "metadata_offset": HEADER_BYTES,
        "metadata_size": len(metadata),
        "tensor_index_offset": HEADER_BYTES + len(metadata),
        "data_offset": HEADER_BYTES + len(metadata) + len(index),
        "checksum": 0,
    } | header
    body = Header(**fields).pack() + metadata + index + data
    return body + zlib.crc32(body).to_bytes(4, "little")


def entry(name, code=0, shape=(1,), offset=0, size=4):
    text = name if isinstance(name, bytes) else name.encode()
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    head = struct.pack("<H", len(text)) + text + bytes([code, len(shape)])
    return head + dims + struct.pack("<QQ", offset, size)


def kinds(file):
    return {type(problem) for problem in file.problems}


def read_everything(file):
    for name in file.names:
        try:
            file.read(name)
        except AprError:
            continue


def test_every_truncation_is_an_error_or_a_listed_problem(tmp_path):
    for length in range(len(TINY)):
        try:
            with open_bytes(tmp_path, TINY[:length]) as file:
                assert file.problems, length
                read_everything(file)
        except AprError:
            pass


def test_every_flipped_bit_is_an_error_or_a_listed_problem(tmp_path):
    for bit in range(8 * len(TINY)):
        data = bytearray(TINY)
        data[bit // 8] ^= 1 << bit % 8
        try:
            with open_bytes(tmp_path, data) as file:
                assert file.problems, bit
                read_everything(file)
        except AprError:
            pass


@pytest.mark.parametrize("count", [1, 2, 1000, 2**32 - 1])
def test_more_tensors_than_bytes(tmp_path, count):
    with pytest.raises(errors.IndexOutOfFile, match=f"{count:,} tensors"):
        open_bytes(tmp_path, build(count=count))


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
def test_sections_beyond_the_file(tmp_path, offset):
    with pytest.raises(errors.MetadataOutOfFile):
        open_bytes(tmp_path, build(metadata_offset=offset))
    with pytest.raises(errors.IndexOutOfFile):
        open_bytes(tmp_path, build(tensor_index_offset=offset))
    with open_bytes(tmp_path, build(data_offset=offset)) as file:
        assert kinds(file) == {errors.TruncatedFile}


def test_metadata_size_beyond_the_file(tmp_path):
    with pytest.raises(errors.MetadataOutOfFile, match="metadata ends at byte 4,294,967,359"):
        open_bytes(tmp_path, build(metadata_size=2**32 - 1))


@pytest.mark.parametrize(
    "offset, size", [(2**64 - 1, 4), (2**64 - 64, 64), (0, 2**64 - 1), (2**40, 4)]
)
def test_tensors_beyond_the_file_or_the_range_of_an_integer(tmp_path, offset, size):
    with open_bytes(tmp_path, build(entries=[entry("a", offset=offset, size=size)])) as file:
        assert errors.TensorOutOfFile in kinds(file)
        with pytest.raises(errors.TensorOutOfFile, match="'a'"):
            file.read("a")


@pytest.mark.parametrize(
    "shape", [(2**63, 2**63), (0, 2**63, 2**63), (1,) * 255, (2**64 - 1,)], ids=str
)
def test_shapes_that_no_array_has(tmp_path, shape):
    size = 4 * int(np.prod([int(extent) for extent in shape], dtype=object))
    data = build(
        entries=[entry("a", shape=shape, size=size if size < 2**64 else 4)], data=b"\0" * 64
    )
    with open_bytes(tmp_path, data) as file:
        assert file.info("a").shape == shape
        try:
            assert file.read("a").shape in (shape, (1,))
        except (errors.ShapeTooLarge, errors.TensorOutOfFile):
            pass


def test_a_shape_beyond_numpy_is_named(tmp_path):
    data = build(entries=[entry("a", shape=(1,) * 255)], data=b"\0" * 64)
    with (
        open_bytes(tmp_path, data) as file,
        pytest.raises(errors.ShapeTooLarge, match="tensor 'a'"),
    ):
        file.read("a")


@pytest.mark.parametrize("code", [6, 7])
def test_a_shape_beyond_numpy_only_in_a_wider_type(tmp_path, code):
    data = build(entries=[entry("a", code=code, shape=(0, 2**63 - 1), size=0)])
    with open_bytes(tmp_path, data) as file:
        assert file.read("a").shape == (0, 2**63 - 1)
        with pytest.raises(errors.ShapeTooLarge, match="tensor 'a'"):
            file.read("a", np.float32)


@pytest.mark.parametrize("code", [8, 9, 12, 14, 128, 129])
@pytest.mark.parametrize(
    "shape",
    [(), (0,), (257,), (2**63 + 1,), (2, 300), (2**64 - 1, 1), (0, 2**63 + 1), (2**62 + 1, 0)],
    ids=str,
)
def test_quantised_tensors_whose_size_and_shape_disagree(tmp_path, code, shape):
    """What is read never has more elements than the stored bytes can hold, two a byte."""
    for size in (0, 1, 3, 4, 5, 18, 144, 210, 288, 1000):
        tensor = entry("a", code=code, shape=shape, size=size)
        with open_bytes(tmp_path, build(entries=[tensor], data=bytes(range(250)) * 4)) as file:
            fits = file.info("a").fits_shape
            assert (errors.SizeMismatch in kinds(file)) is not fits
            try:
                array = file.read("a")
            except errors.ShapeTooLarge:
                assert fits
                continue
            assert array.dtype == np.float32 and array.size <= 2 * size
            assert array.shape == shape if fits else array.ndim == 1


def test_a_quantised_tensor_that_the_file_cuts_short(tmp_path):
    tensor = entry("a", code=12, shape=(512,), size=288)
    with (
        open_bytes(tmp_path, build(entries=[tensor], data=bytes(280))) as file,
        pytest.raises(errors.TensorOutOfFile, match="'a'"),
    ):
        file.read("a")


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"model_type":null}',
        b'{"hidden_size":-1}',
        b'{"hidden_size":64.0}',
        b'{"hidden_size":"64"}',
        b'{"hidden_size":true}',
        b'{"total_size":null}',
        b'{"total_size":18446744073709551616}',
        b'{"rope_theta":"1e6"}',
        b'{"quantization":{"bits":4}}',
        b'{"sharding":{"shard_count":1,"shard_index":0}}',
        b'{"special_tokens":[]}',
    ],
    ids=repr,
)
def test_metadata_that_is_refused(tmp_path, metadata):
    with pytest.raises(errors.MetadataError, match="metadata") as caught:
        open_bytes(tmp_path, build(metadata))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [200, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_metadata(tmp_path, depth, brackets):
    opening = '{"a":' if brackets == "{}" else "["
    deep = opening * depth + "1" + brackets[1] * depth
    with pytest.raises(errors.MetadataError):
        open_bytes(tmp_path, build(f'{{"x":{deep}}}'.encode()))


def test_metadata_too_large_is_refused_before_it_is_copied(tmp_path, monkeypatch):
    path = tmp_path / "a.apr"
    path.write_bytes(build(metadata_size=2**32 - 1)[:HEADER_BYTES])
    os.truncate(path, 2**33)  # a file with a hole takes no room
    monkeypatch.setattr(reader, "bytes", None, raising=False)
    with pytest.raises(errors.MetadataError, match="metadata has 4,294,967,295 bytes, more than"):
        open_apr(path)


@pytest.mark.parametrize("many", [b"[],", b"1,", b'{"a":[]},'], ids=repr)
def test_elements_are_counted_before_they_are_made(tmp_path, many, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_ELEMENTS", 1000)
    monkeypatch.setattr(metadata.json, "loads", None)
    with pytest.raises(errors.MetadataError, match=r"commas and brackets, more than 1,000"):
        open_bytes(tmp_path, build(b'{"x":[' + many * 1000 + b"0]}"))


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors.index.json", "tokenizer.json", "generation_config.json"],
)
def test_files_that_are_read_whole_are_bounded(tmp_path, name):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), shards=2)
    (folder / name).touch()
    os.truncate(folder / name, 12 << 30)
    with pytest.raises(UserError, match=rf"{name}: has 12,884,901,888 bytes, more than"):
        import_checkpoint(folder, tmp_path / "a.apr")
    assert not (tmp_path / "a.apr").exists()


def test_long_names_and_shapes_are_cut_in_messages(tmp_path):
    one, two = ("b" * 60_000), ("a" * 60_000)
    with pytest.raises(errors.UnsortedIndex) as caught:
        open_bytes(tmp_path, build(entries=[entry(one), entry(two)]))
    assert len(str(caught.value)) < 500
    data = build(entries=[entry(two, shape=(2**63,) * 255), entry(one, shape=(1,) * 9)])
    with pytest.raises(errors.MetadataError, match="is out of range") as caught:
        open_bytes(tmp_path, build(b'{"a":1' + b"0" * 10_000 + b"e1}"))
    assert len(str(caught.value)) < 500
    with open_bytes(tmp_path, data) as file:
        assert file.problems and all(len(str(problem)) < 700 for problem in file.problems)


@pytest.mark.parametrize("door", [open_apr, open_checkpoint, HfFolder], ids=lambda d: d.__name__)
def test_a_name_with_a_nul_byte_is_one_line(tmp_path, door):
    with pytest.raises(UserError, match="NUL byte"):
        door(f"{tmp_path}/a\0.apr")
    with pytest.raises(UserError, match="NUL byte"):
        write_apr(f"{tmp_path}/a\0.apr", {}, {})
    with pytest.raises(UserError, match="NUL byte"):
        export_checkpoint(DATA / "qwen2_bf16_stream.apr", f"{tmp_path}/a\0")


def test_many_brackets_without_depth_are_fine(tmp_path):
    wide = json.dumps({"x": [[]] * 500 + ["[{"] * 500}).encode()
    with open_bytes(tmp_path, build(wide)) as file:
        assert len(file.metadata["x"]) == 1000


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "/etc/passwd", "a/../b", "..\\b", "a\x1b[2J", "a\nb", "a\0b", b"\xff"],
    ids=repr,
)
def test_unsafe_names_are_listed_and_never_written(tmp_path, name):
    data = build(entries=[entry(name)], data=b"\0" * 64)
    with open_bytes(tmp_path, data) as file:
        assert errors.UnsafeName in kinds(file)
        assert all(str(problem).isprintable() for problem in file.problems)
        (read,) = file.names
        with pytest.raises(errors.UnsafeName):
            write_apr(tmp_path / "out.apr", {read: np.zeros(1)}, {})
    assert not (tmp_path / "out.apr").exists()


def test_of_two_equal_names_the_first_counts(tmp_path):
    values = np.array([1, 2], np.float32)
    data = build(
        entries=[entry("a"), entry("a", offset=4)],
        data=values.tobytes(),
    )
    with open_bytes(tmp_path, data) as file:
        assert file.names == ["a"] and file.read("a") == 1
        assert errors.DuplicateName in kinds(file)


def test_shared_bytes_are_listed(tmp_path):
    data = build(entries=[entry("a", size=8, shape=(2,)), entry("b", offset=4)], data=bytes(64))
    with open_bytes(tmp_path, data) as file:
        (overlap,) = (p for p in file.problems if isinstance(p, errors.Overlap))
        assert "tensor 'b' shares bytes with tensor 'a'" in str(overlap)
    with open_bytes(tmp_path, build(entries=[entry("a")], data_offset=0)) as file:
        assert errors.Overlap in kinds(file)


@pytest.mark.parametrize("code", [2, 10, 11, 13, 15, 31, 127, 255])
def test_unknown_types_refuse_the_file(tmp_path, code):
    with pytest.raises(errors.UnknownDtype, match=rf"'a' .*type code {code},"):
        open_bytes(tmp_path, build(entries=[entry("a", code=code)]))


def test_an_odd_version_is_listed(tmp_path):
    with open_bytes(tmp_path, build(version=(9, 7))) as file:
        assert kinds(file) == {errors.OddVersion}


def test_a_missing_footer_is_listed(tmp_path):
    with open_bytes(tmp_path, TINY[:-4]) as file:
        assert kinds(file) == {errors.FooterMissing}


@pytest.mark.parametrize(
    "name", ["a.apr", "a.gguf", "a.safetensors", "config.json", "model.safetensors"]
)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="a pipe or a device"):
        open_checkpoint(folder / name if name.startswith("a.") else folder)
