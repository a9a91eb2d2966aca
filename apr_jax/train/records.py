"""The run's log: one JSON object per line, every step and every evaluation."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from apr_jax.files import WriteError, write_bytes
from apr_jax.train.config import TrainError

_FIELDS = {  # that are read again
    "step": {"train_loss", "tokens", "wall_ms", "compiled"},
    "eval": {"val_loss"},
}


class Records:
    """Appends to a JSONL file; each line is with the operating system before `add` returns."""

    def __init__(self, path: pathlib.Path, keep_steps: int) -> None:
        """Open `path`; records of steps after `keep_steps` (made after the checkpoint that the run
        goes on from, or torn by a kill) are dropped; -1 keeps none."""
        self.path = path
        kept = [json.dumps(record) for record in read_records(path) if record["step"] <= keep_steps]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def add(self, kind: str, step: int, **values: Any) -> None:
        """Write one record. `kind` is "step" or "eval"; `step` counts finished updates."""
        record = {"kind": kind, "step": step, **values}
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # of a full disk, which `add` has told
            self._file.close()


def read_records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The records of `path` in order, none if it does not exist; a torn last line is left out."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not _is_record(record):
            raise TrainError(f"{path}:{number}: is no record of a run: remove that line")
        yield record


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    fields = _FIELDS.get(str(value.get("kind")))
    return fields is not None and fields <= value.keys()


def throughput(path: pathlib.Path) -> tuple[float | None, float | None]:
    """Tokens per second over the steps without compilation, and the wait for the first step.

    Pauses for evaluation and checkpoints are in no step's time. None where no such step ran.
    """
    tokens, milliseconds, first = 0, 0.0, None
    for record in read_records(path):
        if record["kind"] != "step":
            continue
        if not record["compiled"]:
            tokens, milliseconds = tokens + record["tokens"], milliseconds + record["wall_ms"]
        elif first is None:
            first = record["wall_ms"] / 1e3
    return (tokens * 1e3 / milliseconds if milliseconds else None), first
