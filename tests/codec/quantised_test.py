"""Quantised tensors: decoded bit for bit as the format says, encoded with small errors."""

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import strategies as st

from apr_jax.codec import dtypes, open_apr
from apr_jax.codec.compare import relative_error
from apr_jax.codec.quantised import decode, encode
from tests.codec import scalar_blocks, small

SCALAR = {"Q4_K": scalar_blocks.q4_k, "Q6_K": scalar_blocks.q6_k, "Q4": scalar_blocks.q4}
HALVES_AT = {"Q4_K": (0, 2), "Q6_K": (208,), "Q4": (0,)}
QUANTISED = (*SCALAR, "Q8")
SOURCES = dict(np.load(small.DATA / "quant_sources.npz"))
any_bytes = hypothesis.settings(derandomize=True, deadline=None, database=None, max_examples=200)


def equal_but_for_payloads(left, right):
    left, right = np.asarray(left, np.float32), np.asarray(right, np.float32)
    nan = np.isnan(left)
    np.testing.assert_array_equal(nan, np.isnan(right))
    np.testing.assert_array_equal(left[~nan].view(np.uint32), right[~nan].view(np.uint32))


@st.composite
def blocks(draw, dtype):
    """Any bits, with every kind of float16 as scale more often than chance would have it."""
    size = dtypes.BY_NAME[dtype].block_bytes
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    for at in HALVES_AT[dtype]:
        half = draw(st.integers(0, 0xFFFF) | st.sampled_from([0, 0x8000, 1, 0x3FF, 0x400, 0xFC00]))
        data[at : at + 2] = half.to_bytes(2, "little")
    return bytes(data)


def finite(dtype, block):
    """The package keeps scales that are not finite, which the reference reader drops."""
    return all(block[at + 1] & 0x7C != 0x7C for at in HALVES_AT[dtype])


@pytest.mark.parametrize("dtype", SCALAR)
def test_every_bit_pattern_of_blocks(dtype):
    @hypothesis.given(st.lists(blocks(dtype), min_size=1, max_size=3))
    @any_bytes
    def check(stored):
        shape = (len(stored) * dtypes.BY_NAME[dtype].block,)
        wanted = np.concatenate([SCALAR[dtype](block) for block in stored])
        values = decode(dtype, b"".join(stored), shape)
        equal_but_for_payloads(values, wanted)
        if dtype != "Q4" and all(finite(dtype, block) for block in stored):
            package = np.array([list(block) for block in stored], np.uint8)
            package = dequantize(package, GGMLQuantizationType[dtype])
            equal_but_for_payloads(values, package.reshape(-1))

    check()


@hypothesis.given(st.binary(min_size=4, max_size=40))
@any_bytes
def test_every_bit_pattern_of_q8(stored):
    equal_but_for_payloads(decode("Q8", stored, (len(stored) - 4,)), scalar_blocks.q8(stored))


@pytest.mark.parametrize("dtype", ["Q4_K", "Q6_K"])
def test_the_gguf_package_decodes_the_same(dtype):
    rng, row = np.random.default_rng(0), dtypes.BY_NAME[dtype]
    stored = rng.integers(0, 256, (3000, row.block_bytes), np.uint8)
    for at in HALVES_AT[dtype]:
        stored[:, at + 1] &= 0xBF  # finite: there the package keeps what the reference drops
    wanted = dequantize(stored, GGMLQuantizationType[dtype])
    equal_but_for_payloads(decode(dtype, stored.tobytes(), wanted.shape), wanted.reshape(-1))


@pytest.mark.parametrize(
    "dtype, half, kept",
    [
        ("Q4_K", 0x7C00, False),
        ("Q4_K", 0xFE00, False),
        ("Q4_K", 0x0001, True),
        ("Q6_K", 0x7C00, False),
        ("Q6_K", 0xFE00, False),
        ("Q6_K", 0x0001, True),
        ("Q4", 0x7C00, False),
        ("Q4", 0xFE00, False),
        ("Q4", 0x03FF, False),
        ("Q4", 0x0400, True),
    ],
)
def test_which_scales_count_as_zero(dtype, half, kept):
    row = dtypes.BY_NAME[dtype]
    stored = bytearray(b"\x21" * row.block_bytes)
    for at in HALVES_AT[dtype]:
        stored[at : at + 2] = half.to_bytes(2, "little")
    assert decode(dtype, bytes(stored), (row.block,)).any() == kept


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize(
    "shape",
    [(), (0,), (1,), (31,), (33,), (256,), (257,), (3, 0), (0, 96), (5, 96), (2, 256), (3, 300),
     (2, 3, 100), (1, 1, 1, 7), (1100, 260)],
    ids=str,
)  # fmt: skip
def test_shapes_come_back(dtype, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stored = encode(dtype, values)
    row = dtypes.BY_NAME[dtype]
    assert stored.dtype == np.uint8 and stored.shape == (row.nbytes(shape),)
    back = decode(dtype, stored.tobytes(), shape).reshape(shape)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, atol=0.4 if dtype.startswith("Q4") else 0.1)


@pytest.mark.parametrize("dtype", ["Q4_K", "Q6_K"])
def test_rows_are_padded_one_by_one_and_flat_files_are_read_flat(dtype):
    """Two sizes are sound for a matrix; each is decoded by its own rule."""
    values = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    by_rows, flat = encode(dtype, values), encode(dtype, values.reshape(-1))
    assert by_rows.size > flat.size
    for at, row in enumerate(values):
        np.testing.assert_array_equal(np.split(by_rows, 5)[at], encode(dtype, row))
        np.testing.assert_array_equal(
            decode(dtype, by_rows, (5, 96)).reshape(5, 96)[at],
            decode(dtype, encode(dtype, row), (96,)),
        )
    np.testing.assert_array_equal(decode(dtype, flat, (5, 96)), decode(dtype, flat, (480,)))


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("shape", [(), (300,), (5, 96), (1 << 40, 1 << 40), (0, 1 << 62)], ids=str)
def test_bytes_of_another_size_give_the_elements_of_whole_blocks(dtype, shape):
    row = dtypes.BY_NAME[dtype]
    for size in (0, 1, 3, 5, 17, 19, 143, 211, 1000):
        if size in row.sizes(shape):
            continue
        stored = np.random.default_rng(0).integers(0, 64, size, np.uint8)
        whole = max(0, size - row.head_bytes) // row.block_bytes * row.block
        values = decode(dtype, stored.tobytes(), shape)
        assert values.shape == (whole,)
        used = row.nbytes((whole,)) if whole else 0
        equal_but_for_payloads(values, decode(dtype, stored[:used].tobytes(), (whole,)))


@pytest.mark.parametrize("key", SOURCES)
def test_against_the_reference_writer(key):
    """Q4 and Q8 have its bytes; the K-types, whose encoding is free, a smaller error."""
    name, tensor = key.split("/")
    with open_apr(small.DATA / name) as file:
        info, stored, theirs = file.info(tensor), file.raw(tensor), file.read(tensor)
    ours = encode(info.dtype, SOURCES[key])
    if info.dtype in ("Q4", "Q8"):
        assert ours.tobytes() == stored
    else:
        values = decode(info.dtype, ours, info.shape).reshape(info.shape)
        assert relative_error(SOURCES[key], values) < relative_error(SOURCES[key], theirs)


def distribution(kind):
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(0, 0.02, (16, 512)),
        "laplace": rng.laplace(0, 0.02, (16, 512)),
        "positive": rng.uniform(5, 6, (16, 512)),
        "negative": rng.uniform(-6, -5, (16, 512)),
        "constant": np.full((2, 512), -0.3),
    }[kind].astype(np.float32)


@pytest.mark.parametrize(
    "dtype, kind, bound",
    [
        ("Q8", "normal", 0.010), ("Q8", "positive", 0.003),
        ("Q6_K", "normal", 0.018), ("Q6_K", "laplace", 0.022), ("Q6_K", "positive", 0.009),
        ("Q6_K", "constant", 0.001),
        ("Q4_K", "normal", 0.075), ("Q4_K", "laplace", 0.090), ("Q4_K", "constant", 0.001),
        # Far from zero, where the reference quantiser saturates.
        ("Q4_K", "positive", 0.004), ("Q4_K", "negative", 0.004),
        ("Q4", "normal", 0.100),
    ],
)  # fmt: skip
def test_errors_of_the_encoders(dtype, kind, bound):
    values = distribution(kind)
    back = decode(dtype, encode(dtype, values), values.shape)
    assert relative_error(values, back) < bound


@pytest.mark.parametrize("dtype", QUANTISED)
def test_every_scale_of_weights(dtype):
    """From what the scales cannot express, which becomes zeros, to the largest that is taken."""
    values = np.random.default_rng(0).normal(size=1024).clip(-4, 4)
    for exponent in range(-60, 10):
        scaled = np.ldexp(values, exponent).astype(np.float32)
        error = relative_error(scaled, decode(dtype, encode(dtype, scaled), (1024,)))
        assert error <= 1.001
        if exponent >= -4:
            assert error < 0.11


@pytest.mark.parametrize("dtype", QUANTISED)
def test_zeros_and_the_same_input_from_any_float_type(dtype):
    zeros = decode(dtype, encode(dtype, np.zeros((3, 40), np.float32)), (3, 40))
    assert not zeros.any()
    values = np.random.default_rng(0).normal(size=(3, 40)).astype(ml_dtypes.bfloat16)
    wanted = encode(dtype, values)
    np.testing.assert_array_equal(encode(dtype, values.astype(np.float64)), wanted)
    np.testing.assert_array_equal(encode(dtype, np.asfortranarray(values)), wanted)


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_what_a_type_cannot_hold_is_refused(dtype, value):
    values = np.zeros(600)
    values[599] = value
    with pytest.raises(OverflowError, match=rf"magnitude (nan|inf), {dtype} holds"):
        encode(dtype, values)


@pytest.mark.parametrize("dtype, limit", [("Q4", 458_000), ("Q4_K", 4e6), ("Q6_K", 2.6e8)])
def test_the_largest_magnitudes(dtype, limit):
    values = np.random.default_rng(0).uniform(-limit, limit, 512).astype(np.float32)
    values[:2] = limit, -limit
    assert relative_error(values, decode(dtype, encode(dtype, values), (512,))) < 0.1
    with pytest.raises(OverflowError):
        encode(dtype, values * np.float32(1.1))
