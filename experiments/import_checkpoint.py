"""Import a HuggingFace or GGUF checkpoint as an `.apr` file, bit for bit or quantised, verified."""

import dataclasses
from collections import Counter
from typing import Any

from absl import flags

from apr_jax.codec import import_checkpoint
from apr_jax.codec.errors import IncompleteModel
from apr_jax.codec.importer import QUANTISED_TYPES, apr_path
from experiments.program import report, run

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "HuggingFace folder, .safetensors file that lies beside its config.json, or GGUF file; with "
    "--retag also an .apr file.",
    required=True,
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The .apr file, or a folder, which gets model.apr. Beside NAME.apr come NAME.tokenizer/ with "
    "the tokenizer files, and report.json.",
    required=True,
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
    folder = apr_path(_OUT.value).parent
    try:
        values = import_checkpoint(
            _SOURCE.value, _OUT.value, quantize=_QUANTIZE.value, retag=_RETAG.value
        )
    except IncompleteModel as error:
        found = dataclasses.asdict(error.coverage)
        report(folder, {"status": "refused", "error": str(error), **found}, [])
        raise
    summary = [
        f"{values['apr']}: {values['parameters']:,} parameters, {len(values['tensors'])} tensors, "
        f"{values['bytes']:,} bytes, {_likeness(values)}",
        f"tokenizer files: {', '.join(values['tokenizer_files']) or 'none found'}",
        *(f"left out {name}: {reason}" for name, reason in values["left_out"].items()),
        *(f"retagged: {evidence}" for evidence in values["retagged"].values()),
        *(
            f"decoded to F32: {number} tensors of {kind}"
            for kind, number in sorted(Counter(values["decoded"].values()).items())
        ),
        *values["notes"],
    ]
    report(folder, values, summary)
    return 0


def _likeness(values: dict[str, Any]) -> str:
    errors = values["quantised"]
    if not errors:
        return "equal to the source bit for bit"
    worst = max(errors, key=errors.__getitem__)
    return (
        f"{len(errors)} tensors as {values['quantize']} with relative errors up to "
        f"{errors[worst]:.2%} ({worst}), the others equal to the source bit for bit"
    )


if __name__ == "__main__":
    run(main)
