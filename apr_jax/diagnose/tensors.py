"""What made one tensor differ from its reference: the known mistakes, tried one by one."""

import re

import jax.numpy as jnp
import numpy as np

from apr_jax.codec.compare import as_bytes, same_bits
from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.codec.stats import count_not_finite
from apr_jax.diagnose.faults import Fault

_ROTATED = re.compile(r"self_attn\.([qk])_proj\.(weight|bias)$")


def compare(
    name: str, ours: np.ndarray, reference: np.ndarray, config: Qwen2Config
) -> tuple[Fault | None, str | None]:
    """The fault of one tensor, or a note when it only has another precision, or neither."""
    if bad := not_finite(ours):  # the same in both is no sound model either
        says = f"{bad:,} of {ours.size:,} values are not finite"
        return Fault("NOT-FINITE", name, says), None
    if same_bits(ours, reference):
        return None, None
    if ours.shape != reference.shape:
        return Fault("SHAPE", name, f"is {list(ours.shape)}, not {list(reference.shape)}"), None
    if _mislabelled(ours, reference):
        return _mislabel(name, ours, reference), None
    ours_f, reference_f = _as_float(ours), _as_float(reference)
    if ours.dtype != reference.dtype:
        if np.array_equal(ours_f, reference_f):
            return None, f"{name}: {ours.dtype} holds the values of {reference.dtype} exactly"
        rounded = _as_float(reference.astype(ours.dtype))
        if np.array_equal(ours_f, rounded):
            return None, f"{name}: {reference.dtype} rounded to {ours.dtype}"
    return _explain(name, ours_f, reference_f, config), None


def not_finite(array: np.ndarray) -> int:
    """How many values are infinite or NaN; integers are neither."""
    return count_not_finite(array) if jnp.issubdtype(array.dtype, jnp.floating) else 0


@np.errstate(over="ignore", invalid="ignore")  # huge values are a fault like any other
def _explain(name: str, ours: np.ndarray, reference: np.ndarray, config: Qwen2Config) -> Fault:
    if not ours.any():
        return Fault("ZEROED", name, "every value is zero")
    if ours.ndim == 2 and np.array_equal(ours.reshape(-1), reference.T.reshape(-1)):
        return Fault(
            "TRANSPOSED",
            name,
            f"the bytes are those of the transposed matrix under the shape {list(ours.shape)}: "
            "a reshape stands where a transpose belongs",
        )
    if (fault := _rope_pairing(name, ours, reference, config)) is not None:
        return fault
    if (fault := _affine(name, ours, reference)) is not None:
        return fault
    differ = ours != reference
    error = np.linalg.norm(ours - reference) / max(float(np.linalg.norm(reference)), 1e-30)
    first = ", ".join(map(str, np.argwhere(differ)[0]))
    return Fault(
        "DIFFERENT",
        name,
        f"{np.count_nonzero(differ):,} of {ours.size:,} values differ, the first at [{first}]: "
        f"relative error {error:.3g}; other weights than the reference's",
    )


def _mislabelled(ours: np.ndarray, reference: np.ndarray) -> bool:
    names = {ours.dtype.name, reference.dtype.name}
    return names == {"float16", "bfloat16"} and bool(
        np.array_equal(as_bytes(ours), as_bytes(reference))
    )


def _mislabel(name: str, ours: np.ndarray, reference: np.ndarray) -> Fault:
    with np.errstate(over="ignore"):
        first = float(ours.reshape(-1)[0]), float(reference.reshape(-1)[0])
    return Fault(
        "MISLABELLED",
        name,
        f"the bytes equal the reference's but are tagged {ours.dtype}, not {reference.dtype}: "
        f"the first value reads {first[0]:.5g} instead of {first[1]:.5g}",
    )


def _rope_pairing(
    name: str, ours: np.ndarray, reference: np.ndarray, config: Qwen2Config
) -> Fault | None:
    """Rows of q and k in the order of adjacent pairs where halves are meant, or back."""
    if _ROTATED.search(name) is None:
        return None
    half = config.head_dim // 2
    for shape, says in (((2, half), "split halves"), ((half, 2), "adjacent pairs")):
        rows = reference.reshape(-1, *shape, *reference.shape[1:]).swapaxes(1, 2)
        if np.array_equal(ours, rows.reshape(reference.shape)):
            return Fault(
                "ROPE-PAIRING",
                name,
                f"the rows of each head are permuted from {says}: the file follows another RoPE "
                "convention than the reference",
            )
    return None


def _affine(name: str, ours: np.ndarray, reference: np.ndarray) -> Fault | None:
    difference = ours - reference
    if abs(difference.mean()) > 1e-3 and np.ptp(difference) < 1e-2 * abs(difference.mean()):
        return Fault("SHIFTED", name, f"is the reference plus {difference.mean():.4g}")
    norm = float(np.vdot(reference, reference))
    scale = float(np.vdot(reference, ours)) / norm if norm else 0.0
    residual = np.linalg.norm(ours - scale * reference)
    if abs(scale - 1) > 1e-2 and residual < 1e-2 * np.linalg.norm(ours):
        return Fault("SCALED", name, f"is {scale:.4g} times the reference")
    return None


def _as_float(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float64 else array.astype(np.float32)
