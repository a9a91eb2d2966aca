"""Is this the reference's model, and does our forward pass compute it? If not: what is wrong."""

import dataclasses
import os
from typing import Any

import numpy as np

from apr_jax.codec import Checkpoint, open_checkpoint
from apr_jax.diagnose.elsewhere import Elsewhere
from apr_jax.diagnose.faults import Fault
from apr_jax.diagnose.forward import check_forward, compare_logits
from apr_jax.diagnose.tensors import compare, not_finite
from apr_jax.errors import UserError
from apr_jax.files import finite
from apr_jax.model import reference as oracle

# What a configuration says beside the mathematics.
_NO_MATHEMATICS = frozenset(
    ("initializer_range", "bos_token_id", "eos_token_id", "max_position_embeddings")
)
_POSITIONS = 48


def crosscheck(
    apr: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    positions: int = _POSITIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a checkpoint with the one that it should be, then run both.

    The ladder: configuration, names and shapes, every element (known mistakes are recognised:
    mislabelled bfloat16, transposed bytes, permuted rows, zeroed, scaled, shifted or exchanged
    values), then our forward pass against a float64 replay of the same parameters, operator by
    operator, and the logits of both checkpoints on the same random ids.

    Args:
      apr, reference: `.apr` file, HuggingFace folder or safetensors file.
      positions: length of the random sequence that is run.
      seed: of its ids.

    Returns:
      `verdict` (one line), `faults` (id, where, says; in the order of the ladder), `notes` (other
      precision, other end-of-text: no faults), `tensors` compared, `logits` and `forward_error`
      (relative L2; None where a rung below already makes running pointless, and for numbers that
      are not finite).

    Raises:
      UserError: one of the two cannot be read at all, or the reference is no whole model.
    """
    with open_checkpoint(apr) as ours, open_checkpoint(reference) as theirs:
        _require_whole(theirs)
        faults, notes = _configuration(ours, theirs)
        coverage = ours.coverage()
        faults += [Fault("MISSING", name, "the file lacks it") for name in coverage.missing]
        faults += [Fault("EXTRA", name, "the model has no such tensor") for name in coverage.extra]
        faults += [
            Fault("SHAPE", name, f"is {list(found)}, needs {list(needed)}")
            for name, found, needed in coverage.shape_mismatch
        ]
        common = [name for name in ours.names if name in set(theirs.names)]
        elsewhere = Elsewhere(theirs)
        for name in common:
            array = ours.read(name)
            fault, note = compare(name, array, _read_finite(theirs, name), ours.config)
            if fault and fault.id == "DIFFERENT":
                fault = elsewhere.find(name, array) or fault
            faults += [fault] if fault else []
            notes += [note] if note else []
        logits, forward_error = None, None
        if coverage.complete and not any(fault.id == "NOT-FINITE" for fault in faults):
            fault, forward_error, logits = _run(ours, theirs, positions, seed, same=not faults)
            faults += [fault] if fault else []
        notes += [str(problem) for problem in ours.problems]
    return {
        "verdict": _verdict(faults, logits),
        "faults": [fault.to_json() for fault in faults],
        "notes": notes,
        "tensors": len(common),
        "forward_error": finite(forward_error),
        "logits": logits,
    }


def _require_whole(reference: Checkpoint) -> None:
    coverage = reference.coverage()
    if not coverage.complete:
        raise UserError(
            f"{reference.path}: is no reference, because it is no whole model: "
            f"{coverage.describe()}"
        )


def _read_finite(reference: Checkpoint, name: str) -> np.ndarray:
    array = reference.read(name)
    if bad := not_finite(array):
        raise UserError(
            f"{reference.path}: is no reference: {name} has {bad:,} of {array.size:,} values that "
            "are not finite"
        )
    return array


def _configuration(ours: Checkpoint, theirs: Checkpoint) -> tuple[list[Fault], list[str]]:
    faults, notes = [], []
    wanted = dataclasses.asdict(theirs.config)
    for key, value in dataclasses.asdict(ours.config).items():
        if value == wanted[key]:
            continue
        if key in _NO_MATHEMATICS:
            notes.append(f"{key} is {value}, the reference has {wanted[key]}")
        else:
            faults.append(Fault("CONFIG", key, f"is {value}, the reference has {wanted[key]}"))
    return faults, notes


def _run(
    ours: Checkpoint, theirs: Checkpoint, positions: int, seed: int, *, same: bool
) -> tuple[Fault | None, float, dict[str, float | None] | None]:
    """Our forward pass against its replay; the replay against the reference's if they differ."""
    rows = min(ours.config.vocab_size, theirs.config.vocab_size)
    ids_BT = np.random.default_rng(seed).integers(0, rows, (1, positions), dtype=np.int32)
    named = {name: ours.read(name) for name in ours.names}
    replayed = oracle.forward(ours.config, named, ids_BT)
    fault, error = check_forward(ours.config, named, ids_BT, replayed)
    if same:
        return fault, error, None
    others = {name: theirs.read(name) for name in theirs.names}
    wanted_BTV = oracle.forward(theirs.config, others, ids_BT)["logits"]
    if wanted_BTV.shape != replayed["logits"].shape:
        return fault, error, None
    return fault, error, compare_logits(replayed["logits"], wanted_BTV)


def _verdict(faults: list[Fault], logits: dict[str, float | None] | None) -> str:
    if not faults:
        return "the same model, and the forward pass computes it"
    kinds = {fault.id: 0 for fault in faults}
    for fault in faults:
        kinds[fault.id] += 1
    first = faults[0]
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    effect = f"; top-1 agreement {logits['argmax_agreement']:.0%}" if logits else ""
    return f"another model: {listed}; first {first.where}: {first.says}{effect}"
