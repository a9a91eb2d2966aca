"""Export an `.apr` model as a HuggingFace folder or a GGUF file, and verify it."""

import re
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
_SHARD_SIZE = flags.DEFINE_string(
    "shard_size",
    "5GB",
    "Tensors beyond this size go to further files; bytes, or a number with KB, MB, GB or KiB, ...",
)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def main() -> int:
    try:
        values = export_checkpoint(
            _APR.value,
            _OUT.value,
            strict=_STRICT.value,
            dtype=_DTYPE.value,
            max_shard_bytes=_bytes(_SHARD_SIZE.value),
        )
    except Oddity as oddity:
        raise UserError(f"{oddity}; --nostrict exports it all the same") from oddity
    summary = [
        f"{values.get('folder') or values['file']}: {values['parameters']:,} parameters in "
        f"{values['tensors']} tensors, {_likeness(values)}",
        *([f"files: {', '.join(values['files'])}"] if "files" in values else []),
        *values["notes"],
        *(f"odd: {problem}" for problem in values["problems"]),
    ]
    report(values.get("folder") or values["file"], values, summary)
    return 0


def _bytes(text: str) -> int:
    """A size as users write it: "2000000", "500MB", "1.5 GiB".

    Raises:
      UserError: it is none, or less than a byte.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    number = float(match[1]) * unit if match and unit else 0.0
    size = int(number) if number < 2**63 else 0
    if size < 1:
        raise UserError(f"--shard_size={text!r} is no size; write for instance 500MB or 5GB")
    return size


def _likeness(values: dict[str, Any]) -> str:
    parts = []
    if values["decoded"]:
        parts.append(f"{len(values['decoded'])} decoded from quantised types")
    if cast := values["cast"]:
        worst = max(cast, key=cast.__getitem__)
        parts.append(
            f"{len(cast)} cast to {_DTYPE.value} with relative errors up to "
            f"{cast[worst]:.2g} ({worst})"
        )
    if len(cast) == values["tensors"]:
        return ", ".join(parts)
    same = "equal to what the .apr file holds"
    return ", ".join([*parts, f"the others {same}" if cast else same])


if __name__ == "__main__":
    run(main)
