"""Export an `.apr` model as a HuggingFace folder, bit for bit, and verify it."""

from absl import flags

from apr_jax.codec import export_checkpoint
from apr_jax.codec.errors import Oddity
from apr_jax.errors import UserError
from experiments.program import report, run

_APR = flags.DEFINE_string("apr", None, "The model file.", required=True)
_OUT = flags.DEFINE_string(
    "out", None, "The folder: missing, empty, or an earlier export.", required=True
)
_STRICT = flags.DEFINE_bool(
    "strict", True, "Refuse a file with oddities; --nostrict lists them in the report instead."
)


def main() -> int:
    try:
        values = export_checkpoint(_APR.value, _OUT.value, strict=_STRICT.value)
    except Oddity as oddity:
        raise UserError(f"{oddity}; --nostrict exports it all the same") from oddity
    summary = [
        f"{values['folder']}: {values['parameters']:,} parameters in {values['tensors']} tensors, "
        "equal to the .apr file bit for bit",
        f"files: {', '.join(values['files'])}",
        *(f"odd: {problem}" for problem in values["problems"]),
    ]
    report(_OUT.value, values, summary)
    return 0


if __name__ == "__main__":
    run(main)
