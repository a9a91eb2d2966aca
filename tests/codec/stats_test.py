"""Statistics agree with NumPy's in float64, also across the parts they are computed in."""

import warnings

import ml_dtypes
import numpy as np
import pytest

from apr_jax.codec import stats


@pytest.mark.parametrize("part", [1, 7, 1 << 20])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_equal_to_numpy(monkeypatch, part, dtype):
    monkeypatch.setattr(stats, "_ELEMENTS_AT_ONCE", part)
    array = (100 + 5 * np.random.default_rng(0).normal(size=(6, 10))).astype(dtype)
    found, wide = stats.tensor_stats(array), array.astype(np.float64)
    np.testing.assert_allclose(
        [found.mean, found.std, found.min, found.max],
        [wide.mean(), wide.std(), wide.min(), wide.max()],
        rtol=1e-12,
    )
    assert (found.elements, found.not_finite) == (60, 0)


def test_a_small_spread_around_a_large_mean_does_not_cancel(monkeypatch):
    monkeypatch.setattr(stats, "_ELEMENTS_AT_ONCE", 16)
    array = 1e9 + np.random.default_rng(0).normal(size=1000)
    # Neighbouring float64 values near 1e9 are 1.2e-7 apart.
    np.testing.assert_allclose(stats.tensor_stats(array).std, array.std(), rtol=1e-6)


def test_what_is_not_finite_is_counted_and_left_out():
    array = np.array([1, np.nan, np.inf, 3, -np.inf], np.float32)
    assert stats.tensor_stats(array) == stats.TensorStats(5, 3, 2.0, 1.0, 1.0, 3.0)


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.full(2, np.nan)])
def test_nothing_to_describe(array):
    found = stats.tensor_stats(array)
    assert (found.mean, found.std, found.min, found.max) == (None, None, None, None)


def test_overflow_of_float64_is_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = stats.tensor_stats(np.array([1.7e308, -1.7e308]))
    assert found.std is None and found.max == 1.7e308


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_what_is_not_finite_is_counted(dtype, monkeypatch):
    monkeypatch.setattr(stats, "_WORDS_OF_A_TASK", 64)
    monkeypatch.setattr(stats, "_WORDS_AT_ONCE", 16)
    array = np.random.default_rng(0).normal(size=(37, 11)).astype(dtype)
    array[0, 0], array[1, 1] = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).smallest_subnormal
    assert stats.count_not_finite(array) == 0
    array[5, :4] = [np.inf, -np.inf, np.nan, -np.nan]
    array[-1, -1] = np.nan
    assert stats.count_not_finite(array) == 5
    assert stats.count_not_finite(array[:, ::2]) == 3
    assert stats.count_not_finite(array[:0]) == 0
