"""Compare two checkpoints of any two formats element by element. Exit code 1 when they differ."""

from collections.abc import Iterator
from typing import Any

from absl import flags

from apr_jax.codec import diff_checkpoints
from experiments.program import report, run

_A = flags.DEFINE_string(
    "a", None, "One model: .apr, HuggingFace folder, .safetensors or GGUF.", required=True
)
_B = flags.DEFINE_string("b", None, "The other, of the same or another format.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for report.json; unset writes none.")


def main() -> int:
    values = diff_checkpoints(_A.value, _B.value)
    report(_OUT.value, values, list(_lines(values)))
    return 1 if values["status"] == "different" else 0


def _lines(values: dict[str, Any]) -> Iterator[str]:
    for key, (a, b) in values["config"].items():
        yield f"configuration: {key} is {a} and {b}"
    for row in values["tensors"]:
        if row["verdict"] == "equal":
            continue
        line = f"{row['name']}: {row['verdict']}, {row['a']} and {row['b']}"
        if row["elements"]:
            line += (
                f"; {row['elements']:,} elements, at most {_number(row['max_absolute'])} apart, "
                f"{_number(row['max_relative'])} relative"
            )
        yield line
    counts: dict[str, int] = {}
    for row in values["tensors"]:
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    listed = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    yield f"{values['status']}: {listed}"


def _number(value: float | None) -> str:
    return "not a finite number" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    run(main)
