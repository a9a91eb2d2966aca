"""Export an `.apr` model as a HuggingFace folder or a GGUF file, and verify it."""

import pathlib
from typing import Any

from absl import flags

from apr_jax.codec import export_checkpoint
from apr_jax.codec.errors import Oddity
from apr_jax.codec.exporter import EXPORT_DTYPES
from apr_jax.errors import UserError
from experiments.program import report, run

_APR = flags.DEFINE_string("apr", None, "The model file.", required=True)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The folder: missing, empty, or an earlier export. Or a new file NAME.gguf.",
    required=True,
)
_STRICT = flags.DEFINE_bool(
    "strict", True, "Refuse a file with oddities; --nostrict lists them in the report instead."
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    EXPORT_DTYPES,
    "Write every tensor in this type. Unset leaves each in its own, and quantised ones as float32.",
)


def main() -> int:
    try:
        values = export_checkpoint(_APR.value, _OUT.value, strict=_STRICT.value, dtype=_DTYPE.value)
    except Oddity as oddity:
        raise UserError(f"{oddity}; --nostrict exports it all the same") from oddity
    summary = [
        f"{values.get('folder') or values['file']}: {values['parameters']:,} parameters in "
        f"{values['tensors']} tensors, {_likeness(values)}",
        *([f"files: {', '.join(values['files'])}"] if "files" in values else []),
        *values["notes"],
        *(f"odd: {problem}" for problem in values["problems"]),
    ]
    folder = values.get("folder") or pathlib.Path(values["file"]).parent
    report(folder, values, summary)
    return 0


def _likeness(values: dict[str, Any]) -> str:
    decoded = f"{len(values['decoded'])} of them decoded from quantised types, "
    return (
        (decoded if values["decoded"] else "")
        + (f"all as {_DTYPE.value}, " if _DTYPE.value else "")
        + "equal to what the .apr file holds"
    )


if __name__ == "__main__":
    run(main)
