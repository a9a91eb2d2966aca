"""What is written equals the reference writer's bytes, reads back bit for bit, is never half."""

import json
import string

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from apr_jax.codec import AprWriter, ArraySpec, errors, open_apr, write_apr
from apr_jax.codec.compare import same_bits
from apr_jax.codec.dtypes import BY_NUMPY
from tests.codec import small

names = st.text(string.ascii_letters + string.digits + "._é鍵", min_size=1, max_size=40).filter(
    "..".__ne__
)


@st.composite
def arrays(draw):
    """Any bits of any writable type, rank 0 to 8, empty ones too."""
    dtype = draw(st.sampled_from(list(BY_NUMPY)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=8)))
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@hypothesis.given(st.dictionaries(names, arrays(), max_size=5), st.randoms(use_true_random=False))
@hypothesis.settings(derandomize=True, deadline=None, database=None, max_examples=150)
def test_round_trip_whole_and_streaming(tmp_path_factory, tensors, random):
    folder = tmp_path_factory.mktemp("writer")
    whole, streamed = folder / "whole.apr", folder / "streamed.apr"
    write_apr(whole, tensors, {"name": "any"})
    order = list(tensors)
    random.shuffle(order)
    with AprWriter(streamed, tensors, {"name": "any"}) as writer:
        for name in order:
            writer.add(name, tensors[name])
    assert whole.read_bytes() == streamed.read_bytes()
    with open_apr(whole, strict=True) as file:
        assert file.names == sorted(tensors)
        for name, array in tensors.items():
            assert same_bits(file.read(name), array)


@pytest.mark.parametrize("name", ["f32_tiny.apr", "half_special.apr", "other_dtypes.apr"])
def test_the_reference_writer_writes_the_same_bytes(tmp_path, name):
    with open_apr(small.DATA / name) as file:
        tensors = {tensor: file.read(tensor) for tensor in file.names}
        write_apr(tmp_path / name, tensors, file.metadata)
    assert (tmp_path / name).read_bytes() == (small.DATA / name).read_bytes()


def test_special_values_keep_their_bits(tmp_path):
    words = np.array([0x8000, 0x7F81, 0xFFC1, 0x0001, 0x7F80], np.uint16)
    tensors = {
        "bf16": words.view(ml_dtypes.bfloat16),
        "f16": np.array([0x8000, 0x7C01, 0xFE01, 0x0001], np.uint16).view(np.float16),
        "f32": np.array([0x80000000, 0x7F800001, 0xFFC00001], np.uint32).view(np.float32),
        "f64": np.array([1 << 63, 0x7FF0000000000001], np.uint64).view(np.float64),
    }
    write_apr(tmp_path / "a.apr", tensors, {})
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert all(same_bits(file.read(name), array) for name, array in tensors.items())


def test_layouts_other_than_row_major_are_written_row_major(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_apr(tmp_path / "a.apr", {"t": array.T, "s": array[::2, 1::2]}, {})
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert same_bits(file.read("t"), array.T.copy())
        assert same_bits(file.read("s"), array[::2, 1::2].copy())


def test_the_bytes_do_not_depend_on_the_order_of_the_input(tmp_path):
    a, b = np.ones(3, np.float32), np.zeros((2, 2), np.int8)
    write_apr(tmp_path / "1.apr", {"a": a, "b": b}, {"x": {"p": 1, "q": 2}, "name": "n", "y": 0})
    write_apr(tmp_path / "2.apr", {"b": b, "a": a}, {"y": 0, "name": "n", "x": {"q": 2, "p": 1}})
    assert (tmp_path / "1.apr").read_bytes() == (tmp_path / "2.apr").read_bytes()


def test_no_tensors(tmp_path):
    write_apr(tmp_path / "a.apr", {}, {})
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert file.names == []
        assert file.header.tensor_index_offset == file.header.data_offset


F32 = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    "name, array, error",
    [
        ("x" * 257, F32, errors.NameTooLong),
        ("é" * 129, F32, errors.NameTooLong),
        ("\ud800", F32, errors.UnsafeName),
        ("a", np.zeros((1,) * 9, np.float32), errors.RankTooHigh),
        ("a", np.zeros(2, np.complex64), errors.UnsupportedDtype),
        ("a", np.zeros(2, np.uint16), errors.UnsupportedDtype),
        ("a", np.zeros(2, bool), errors.UnsupportedDtype),
        ("a", np.zeros(2, ">f4"), errors.UnsupportedDtype),
        ("a", np.zeros(2, ml_dtypes.float8_e5m2), errors.UnsupportedDtype),
        ("a", np.array(["text"]), errors.UnsupportedDtype),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, name, array, error):
    with pytest.raises(error, match=r"a\.apr: tensor"):
        write_apr(tmp_path / "a.apr", {name: array}, {})
    assert list(tmp_path.iterdir()) == []


def test_names_of_256_bytes_and_eight_axes_are_written(tmp_path):
    tensors = {"x" * 256: F32, "b": np.zeros((1,) * 8, np.float32)}
    write_apr(tmp_path / "a.apr", tensors, {})
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert file.names == sorted(tensors)


def test_a_stream_must_be_what_was_declared(tmp_path):
    path = tmp_path / "a.apr"
    path.write_bytes(b"old")
    declared = {"a": F32, "b": ArraySpec(np.dtype(np.int8), (3,))}

    def add(*added):
        with AprWriter(path, declared, {}) as writer:
            for name, array in added:
                writer.add(name, array)

    with pytest.raises(errors.TensorNotDeclared, match="'c'"):
        add(("c", F32))
    with pytest.raises(errors.TensorNotDeclared, match=r"'a': is float64 \[2\], .* F32 \[2\]"):
        add(("a", np.zeros(2)))
    with pytest.raises(errors.TensorNotDeclared, match=r"int8 \[1, 3\]"):
        add(("b", np.zeros((1, 3), np.int8)))
    with pytest.raises(errors.DuplicateName, match="'a': was added twice"):
        add(("a", F32), ("a", F32))
    with pytest.raises(errors.TensorsMissing, match=r"1 of 2 .*'b'"):
        add(("a", F32))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", ["Q4", "Q8", "Q4_K", "Q6_K"])
def test_arrays_are_quantised_on_request(tmp_path, dtype):
    tensors = {
        "a": np.linspace(-1, 1, 600, dtype=ml_dtypes.bfloat16).reshape(2, 300),
        "b": np.linspace(0, 1, 9, dtype=np.float64),
    }
    write_apr(tmp_path / "whole.apr", tensors, {}, dtypes={"a": dtype})
    declared = {"b": tensors["b"], "a": ArraySpec(dtype, (2, 300))}
    with AprWriter(tmp_path / "streamed.apr", declared, {}) as writer:
        writer.add("b", tensors["b"])
        stored = writer.add("a", tensors["a"])
    assert (tmp_path / "whole.apr").read_bytes() == (tmp_path / "streamed.apr").read_bytes()
    with open_apr(tmp_path / "whole.apr", strict=True) as file:
        assert file.info("a").dtype == dtype and file.raw("a") == stored.tobytes()
        assert same_bits(file.read("b"), tensors["b"])
        np.testing.assert_allclose(file.read("a"), tensors["a"].astype(np.float32), atol=0.08)
        assert same_bits(file.read("a", np.float64), file.read("a").astype(np.float64))


def test_what_cannot_be_quantised_is_refused(tmp_path):
    path = tmp_path / "a.apr"
    floats = np.array([1, np.nan], np.float32)
    with pytest.raises(errors.OutOfRange, match=r"'a': has a value of magnitude nan.*own type"):
        write_apr(path, {"a": floats}, {}, dtypes={"a": "Q8"})
    with pytest.raises(errors.TensorNotDeclared, match=r"is int8 \[2\], was declared as Q8"):
        write_apr(path, {"a": np.ones(2, np.int8)}, {}, dtypes={"a": "Q8"})
    with pytest.raises(errors.TensorNotDeclared, match="'b': has a type but is not given"):
        write_apr(path, {"a": floats}, {}, dtypes={"b": "Q8"})
    assert list(tmp_path.iterdir()) == []


def test_stored_bytes_are_written_as_they_are(tmp_path):
    """The reference quantiser's own file, streamed in another order, becomes the same file."""
    with (
        open_apr(small.DATA / "quant_k.apr") as file,
        AprWriter(
            tmp_path / "a.apr",
            {name: ArraySpec(file.info(name).dtype, file.info(name).shape) for name in file.names},
            file.metadata,
        ) as writer,
    ):
        for name in reversed(file.names):
            writer.add_raw(name, file.raw(name))
    assert (tmp_path / "a.apr").read_bytes() == (small.DATA / "quant_k.apr").read_bytes()


@pytest.mark.parametrize("spec", [ArraySpec("F32", (2, 0)), ArraySpec("Q4_K", (0, 96))])
def test_raw_tensors_may_be_empty(tmp_path, spec):
    with AprWriter(tmp_path / "a.apr", {"a": spec}, {}) as writer:
        writer.add_raw("a", b"")
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert file.info("a").shape == spec.shape and file.info("a").nbytes == 0


@pytest.mark.parametrize(
    "spec, size",
    [
        (ArraySpec("BF16", (3, 5)), 30),
        (ArraySpec("Q8", (10,)), 14),
        (ArraySpec("Q4_K", (5, 96)), 720),  # each row padded, not the 288 of one flat run
        (ArraySpec("Q6_K", (2, 1, 300)), 630),
    ],
)
def test_stored_bytes_must_be_as_many_as_the_shape_needs(tmp_path, spec, size):
    for wrong in (size - 1, size + 1, 288, 0):
        with (
            pytest.raises(errors.TensorNotDeclared, match=rf"has {wrong} bytes, .* it has {size}"),
            AprWriter(tmp_path / "a.apr", {"a": spec}, {}) as writer,
        ):
            writer.add_raw("a", bytes(wrong))
    assert list(tmp_path.iterdir()) == []
    with AprWriter(tmp_path / "a.apr", {"a": spec}, {}) as writer:
        writer.add_raw("a", bytes(range(256)) * (size // 256) + bytes(size % 256))
        with pytest.raises(errors.DuplicateName):
            writer.add_raw("a", bytes(size))
        with pytest.raises(errors.TensorNotDeclared, match="'b': was not declared"):
            writer.add_raw("b", bytes(size))
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert file.info("a").nbytes == size


@pytest.mark.parametrize("dtype", ["float32", "Q5_K", "q4_k", ""])
def test_names_that_the_format_has_not_are_refused(tmp_path, dtype):
    with pytest.raises(errors.UnsupportedDtype, match=r"\.apr files hold F32, .*Q8"):
        AprWriter(tmp_path / "a.apr", {"a": ArraySpec(dtype, (2,))}, {})


def test_a_writer_outside_its_block_is_refused(tmp_path):
    writer = AprWriter(tmp_path / "a.apr", {"a": F32}, {})
    with pytest.raises(errors.ClosedError, match="with block"):
        writer.add("a", F32)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_inside_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.apr"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), AprWriter(path, {"a": F32}, {}) as writer:
        writer.add("a", F32)
        _ = 1 // 0
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.apr"
    write_apr(path, {"a": F32}, {"name": "old"})
    old = path.read_bytes()
    program = """
import sys
import numpy as np
from apr_jax.codec import AprWriter
array = np.ones(1 << 20, np.float32)
with AprWriter(sys.argv[1], {"a": array, "b": array}, {}) as writer:
    writer.add("a", array)
    print("half", flush=True)
    sys.stdin.read()
"""
    small.killed_in_the_middle(program, str(path))
    assert path.read_bytes() == old
    write_apr(path, {"a": F32}, {"name": "new"})
    with open_apr(path, strict=True) as file:
        assert file.metadata["name"] == "new"


def test_metadata_bytes_are_canonical(tmp_path):
    write_apr(
        tmp_path / "a.apr",
        {},
        {"z": "é\n", "rms_norm_eps": 1e-6, "rope_theta": 10000, "name": "n", "a": [1.5, None]},
    )
    with open_apr(tmp_path / "a.apr") as file:
        start = file.header.metadata_offset
        text = (tmp_path / "a.apr").read_bytes()[start : start + file.header.metadata_size]
    assert text.decode() == (
        '{"model_type":"","name":"n","license":null,"data_source":null,"data_license":null,'
        '"total_size":0,"param_count":0,"rope_theta":10000.0,"rms_norm_eps":1e-06,'
        '"a":[1.5,null],"z":"é\\n"}'
    )
    json.loads(text)


def test_metadata_can_be_put_in_last(tmp_path):
    arrays = {"a": np.arange(100, dtype=np.float32), "b": np.ones(3, np.int8)}
    write_apr(tmp_path / "whole.apr", arrays, {"hash": "abc"})
    with AprWriter(tmp_path / "late.apr", arrays, {"hash": "???"}) as writer:
        for name in reversed(arrays):
            writer.add(name, arrays[name])
        writer.replace_metadata({"hash": "abc"})
    assert (tmp_path / "late.apr").read_bytes() == (tmp_path / "whole.apr").read_bytes()


def test_metadata_of_another_length_is_refused(tmp_path):
    with (
        pytest.raises(errors.MetadataError, match=r"takes .* bytes, the file was laid out for"),
        AprWriter(tmp_path / "a.apr", {}, {"hash": "abc"}) as writer,
    ):
        writer.replace_metadata({"hash": "abcd"})
    assert not (tmp_path / "a.apr").exists()
