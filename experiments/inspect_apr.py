"""Show an `.apr` file: header, metadata, tensors, health.

Exit code 1 when something is odd, or when the file says that it is a Qwen2 or Llama model and
cannot be computed as one.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from absl import flags

from apr_jax.codec import AprError, AprFile, open_apr
from apr_jax.codec.header import Flags
from apr_jax.codec.soundness import Soundness, examine
from apr_jax.codec.stats import tensor_stats
from apr_jax.errors import UserError
from experiments.program import differences, printable, report, run, table

_APR = flags.DEFINE_string("apr", None, "The file.", required=True)
_STATS = flags.DEFINE_bool("stats", False, "Read every tensor: its mean, std, min and max.")
_OUT = flags.DEFINE_string("out", None, "Folder for report.json; unset writes none.")
_JSON = flags.DEFINE_bool("json", False, "Print the whole report as JSON, and nothing else.")

_SHOWN_CHARACTERS = 100


def main() -> int:
    with open_apr(_APR.value) as file:
        tensors = [_tensor(file, name) for name in file.names]
        found = examine(file)
        problems = [_line(problem) for problem in (*found.faults, *file.problems)]
        values = {
            "status": "MISSED" if problems else "OK",
            "apr": _APR.value,
            "header": dataclasses.asdict(file.header),
            "metadata": file.metadata,
            "tensors": tensors,
            "architecture": found.architecture,
            "differences": found.coverage.rows() if found.coverage else [],
            "problems": problems,
        }
    summary = [json.dumps(values, indent=2)] if _JSON.value else _lines(values, found)
    report(_OUT.value, values, list(summary))
    return 1 if problems else 0


def _line(problem: UserError) -> str:
    return f"{type(problem).__name__}: {problem}"


def _tensor(file: AprFile, name: str) -> dict[str, Any]:
    info = file.info(name)
    row = {"name": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.nbytes}
    if _STATS.value:
        try:
            row |= dataclasses.asdict(tensor_stats(file.read(name)))
        except AprError as error:
            row["unread"] = str(error)
    return row


def _lines(values: dict[str, Any], found: Soundness) -> Iterator[str]:
    yield "header"
    for key, value in values["header"].items():
        yield f"  {key:20} {Flags(value)!r}" if key == "flags" else f"  {key:20} {value}"
    yield "metadata"
    for key, value in values["metadata"].items():
        text = json.dumps(value)
        cut = "" if len(text) <= _SHOWN_CHARACTERS else f"... ({len(text):,} characters)"
        yield f"  {json.dumps(key)[1:-1]:24} {text[:_SHOWN_CHARACTERS]}{cut}"
    yield f"tensors ({len(values['tensors'])})"
    yield from _table(values["tensors"])
    yield "health"
    if found.architecture is None:
        yield "  holds no Qwen2 or Llama model, so only the file itself was examined"
    elif found.coverage is not None:
        yield f"  {found.architecture}: {found.coverage.count()}"
        yield from differences(found.coverage, "with --json")
    yield from (f"  {problem}" for problem in values["problems"] or ["nothing odd was found"])


def _table(tensors: list[dict[str, Any]]) -> Iterator[str]:
    columns = ["name", "dtype", "shape", "bytes"]
    if _STATS.value:
        columns += ["mean", "std", "min", "max", "not_finite"]
    yield from table([columns] + [[_cell(row, column) for column in columns] for row in tensors])
    yield from (f"  not read: {row['unread']}" for row in tensors if "unread" in row)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    if column == "name":
        return printable(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run(main)
