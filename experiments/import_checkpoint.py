"""Import a HuggingFace Qwen2 checkpoint as an `.apr` file, bit for bit, and verify it."""

from absl import flags

from apr_jax.codec import import_checkpoint
from apr_jax.codec.importer import apr_path
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


def main() -> int:
    values = import_checkpoint(_SOURCE.value, _OUT.value)
    summary = [
        f"{values['apr']}: {values['parameters']:,} parameters, {len(values['tensors'])} tensors, "
        f"{values['bytes']:,} bytes, equal to the source bit for bit",
        f"tokenizer files: {', '.join(values['tokenizer_files']) or 'none found'}",
        *(f"left out {name}: {reason}" for name, reason in values["left_out"].items()),
    ]
    report(apr_path(_OUT.value).parent, values, summary)
    return 0


if __name__ == "__main__":
    run(main)
