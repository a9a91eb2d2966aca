"""Two checkpoints are compared by what they hold, whatever their formats."""

import dataclasses

import ml_dtypes
import numpy as np

from apr_jax.codec import diff_checkpoints, import_checkpoint, write_apr
from tests.codec import ggufs, small

NORM = "model.norm.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def apr(path, values, **changes):
    config = dataclasses.replace(small.config(), **changes)
    write_apr(path, values, config.to_apr())
    return path


def rows(result):
    return {row["name"]: row for row in result["tensors"]}


def test_formats_do_not_matter(tmp_path):
    values = small.tensors()
    folder = small.hf_folder(tmp_path / "hf", values)
    import_checkpoint(folder, tmp_path / "a.apr")
    result = diff_checkpoints(folder, tmp_path / "a.apr")
    assert result["status"] == "equal" and result["config"] == {}
    assert {row["verdict"] for row in result["tensors"]} == {"equal"}
    assert len(result["tensors"]) == len(values)


def test_a_gguf_of_the_same_values_in_wider_types(tmp_path):
    values = small.finite_tensors()
    wide = {name: array.astype(np.float32) for name, array in values.items()}
    ggufs.write(tmp_path / "a.gguf", small.config(), wide)
    result = diff_checkpoints(tmp_path / "a.gguf", apr(tmp_path / "a.apr", values))
    assert result["status"] == "equal values"
    assert rows(result)[NORM]["a"] == "F32 [8]" and rows(result)[NORM]["b"] == "BF16 [8]"


def test_differences_are_measured(tmp_path):
    values = small.finite_tensors(dtype=np.float32)
    changed = values | {UP: values[UP].copy(), NORM: np.ones(7, np.float32)}
    changed[UP][1, 2] = 10 * values[UP][1, 2]
    changed["extra"] = np.zeros(1, np.float32)
    result = diff_checkpoints(
        apr(tmp_path / "a.apr", values), apr(tmp_path / "b.apr", changed, rope_theta=1e4)
    )
    assert result["status"] == "different" and result["config"] == {"rope_theta": [1e6, 1e4]}
    found = rows(result)
    assert found[UP]["verdict"] == "different" and found[UP]["elements"] == 1
    assert np.isclose(found[UP]["max_absolute"], 9 * abs(values[UP][1, 2]))
    assert np.isclose(found[UP]["max_relative"], 0.9)
    assert found[NORM]["verdict"] == "different" and found[NORM]["max_absolute"] is None
    assert found["extra"]["verdict"] == "only in b" and found["extra"]["a"] is None


def test_differences_that_float64_or_a_comparison_does_not_show(tmp_path):
    """Neighbours of 2**60, and zeros of two signs."""
    values = small.finite_tensors(dtype=np.float32)
    one = values | {NORM: np.full(8, 2**60, np.int64), UP: np.zeros((12, 8), np.float32)}
    two = one | {NORM: np.full(8, 2**60 + 1, np.int64), UP: -one[UP]}
    path = apr(tmp_path / "a.apr", one)
    found = rows(diff_checkpoints(path, apr(tmp_path / "b.apr", two)))
    assert [found[NORM][key] for key in ("verdict", "elements", "max_absolute")] == [
        "different",
        8,
        1.0,
    ]
    assert [found[UP][key] for key in ("verdict", "elements", "max_absolute", "max_relative")] == [
        "different",
        96,
        0.0,
        0.0,
    ]
    floats = apr(tmp_path / "c.apr", two | {NORM: np.full(8, 2.0**60)})
    assert rows(diff_checkpoints(path, floats))[NORM]["verdict"] == "equal values"
    found = rows(diff_checkpoints(tmp_path / "b.apr", floats))[NORM]
    assert found["verdict"] == "different" and found["elements"] == 8
    ends = np.array([-(2**63), 2**63 - 1] * 4)
    apr(tmp_path / "d.apr", one | {NORM: ends[::-1].copy()})
    apr(tmp_path / "e.apr", one | {NORM: ends})
    found = rows(diff_checkpoints(tmp_path / "d.apr", tmp_path / "e.apr"))[NORM]
    assert found["max_absolute"] == 2.0**64


def test_values_that_are_not_finite(tmp_path):
    values = small.finite_tensors(dtype=ml_dtypes.bfloat16)
    odd = {name: array.copy() for name, array in values.items()}
    odd[NORM][0] = np.nan
    one, two = apr(tmp_path / "a.apr", values), apr(tmp_path / "b.apr", odd)
    row = rows(diff_checkpoints(one, two))[NORM]
    assert (row["verdict"], row["elements"], row["max_absolute"]) == ("different", 1, None)
    odd[NORM].view(np.uint16)[0] ^= 1
    assert rows(diff_checkpoints(two, apr(tmp_path / "c.apr", odd)))[NORM]["verdict"] == (
        "equal values"
    )
