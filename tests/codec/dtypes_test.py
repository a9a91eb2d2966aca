"""The table of types: sizes as the format counts them."""

import pytest

from apr_jax.codec import dtypes


@pytest.mark.parametrize(
    "name, shape, sizes",
    [
        ("F32", (), (4,)),
        ("BF16", (3, 5), (30,)),
        ("I64", (0, 7), (0,)),
        ("Q8", (10,), (14,)),
        ("Q4", (33,), (36,)),
        ("Q4_K", (256,), (144,)),
        ("Q4_K", (300,), (288,)),
        ("Q4_K", (5, 96), (288, 720)),
        ("Q6_K", (3, 320), (840, 1260)),
    ],
)
def test_sizes(name, shape, sizes):
    assert dtypes.BY_NAME[name].sizes(shape) == sizes


def test_codes():
    codes = {code: row.name for code, row in dtypes.BY_CODE.items()}
    assert codes == {
        0: "F32",
        1: "F16",
        3: "F64",
        4: "I32",
        5: "I64",
        6: "I8",
        7: "U8",
        8: "Q4",
        9: "Q8",
        12: "Q4_K",
        14: "Q6_K",
        30: "BF16",
        128: "Q4",
        129: "Q8",
    }
