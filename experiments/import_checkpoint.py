"""Import a HuggingFace Qwen2 checkpoint as an `.apr` file, bit for bit or quantised, verified."""

from typing import Any

from absl import flags

from apr_jax.codec import import_checkpoint
from apr_jax.codec.importer import QUANTISED_TYPES, apr_path
from experiments.program import report, run

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "HuggingFace folder, or a .safetensors file that lies beside its config.json.",
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


def main() -> int:
    values = import_checkpoint(_SOURCE.value, _OUT.value, quantize=_QUANTIZE.value)
    summary = [
        f"{values['apr']}: {values['parameters']:,} parameters, {len(values['tensors'])} tensors, "
        f"{values['bytes']:,} bytes, {_likeness(values)}",
        f"tokenizer files: {', '.join(values['tokenizer_files']) or 'none found'}",
        *(f"left out {name}: {reason}" for name, reason in values["left_out"].items()),
    ]
    report(apr_path(_OUT.value).parent, values, summary)
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
