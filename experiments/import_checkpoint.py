"""Import a HuggingFace or GGUF checkpoint as an `.apr` file, bit for bit or quantised, verified."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from absl import flags

from apr_jax.codec import import_checkpoint
from apr_jax.codec.errors import IncompleteModel
from apr_jax.codec.importer import QUANTISED_TYPES
from experiments.program import differences, report, run

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "HuggingFace folder, .safetensors file or GGUF file; or an .apr file that is to be quantised "
    "or has oddities of older writers.",
    required=True,
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The .apr file, or a folder, which gets model.apr. Beside NAME.apr come NAME.tokenizer/ with "
    "the tokenizer files, and NAME.apr.report.json; in a folder report.json.",
    required=True,
)
_CONFIG = flags.DEFINE_string(
    "config", None, "config.json of a .safetensors file; unset takes the one beside it."
)
_QUANTIZE = flags.DEFINE_enum(
    "quantize",
    None,
    QUANTISED_TYPES,
    "Store matrices in this type, with the error in the report; biases, norms and small tensors "
    "stay as they are. Unset keeps every bit.",
)
_RETAG = flags.DEFINE_bool(
    "retag",
    False,
    "Give tensors tagged F16 that hold BF16, or the other way round, their true type. Without it "
    "such a model is refused.",
)


def main() -> int:
    try:
        values = import_checkpoint(
            _SOURCE.value,
            _OUT.value,
            quantize=_QUANTIZE.value,
            retag=_RETAG.value,
            config=_CONFIG.value,
        )
    except IncompleteModel as error:
        found = dataclasses.asdict(error.coverage)
        refused = {"status": "refused", "error": str(error), **found}
        report(_OUT.value, refused, list(differences(error.coverage, "in the report")))
        raise
    report(_OUT.value, values, list(_lines(values)))
    return 0


def _lines(values: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{values['apr']}: {values['parameters']:,} parameters, {len(values['tensors'])} tensors, "
        f"{values['bytes']:,} bytes, {_likeness(values)}"
    )
    yield f"tokenizer files: {', '.join(values['tokenizer_files']) or 'none found'}"
    if values["mended"]:
        yield from (f"mended: {line}" for line in values["mended"])
    else:
        yield from (f"left out {name}: {why}" for name, why in values["left_out"].items())
    yield from values["notes"]


def _likeness(values: dict[str, Any]) -> str:
    """What became of the tensors, each counted once."""
    errors = values["quantised"]
    decoded = Counter(kind for name, kind in values["decoded"].items() if name not in errors)
    changed = [f"{number} decoded from {kind} to F32" for kind, number in sorted(decoded.items())]
    if errors:
        worst = max(errors, key=errors.__getitem__)
        changed.append(
            f"{len(errors)} as {values['quantize']} with relative errors up to "
            f"{errors[worst]:.2%} ({worst})"
        )
    if len(errors) + decoded.total() == len(values["tensors"]):
        return ", ".join(changed)
    same = "equal to the source bit for bit"
    return ", ".join([*changed, f"the others {same}"]) if changed else same


if __name__ == "__main__":
    run(main)
