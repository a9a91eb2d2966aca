"""What every program here shares: flags in, one call, a report and an exit code out."""

import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging

from apr_jax.codec import Coverage
from apr_jax.errors import UserError
from apr_jax.files import read_json, write_json

_MODEL_FILES = (".apr", ".gguf")
_SHOWN = 20
_WIDEST = 100


def run(main: Callable[[], int]) -> None:
    """Parse the flags and run `main`; its result is the exit code: 0 success, 1 failed verdict.

    Bad usage and `UserError`s become one line on stderr and exit code 2.
    """
    app.run(lambda _: sys.exit(_guarded(main)), flags_parser=_parse)


def report(
    out: str | os.PathLike[str] | None, values: dict[str, Any], summary: Sequence[str]
) -> None:
    """Write `values` to `out`/report.json (when there is an `out`) and print the summary lines.

    Of an `out` that is a model file the report is `out`.report.json. Another program's report is
    left alone: this one then has the name of its program. The report's `status` is OK unless
    `values` say otherwise.
    """
    if out:
        program = pathlib.Path(sys.argv[0]).stem
        write_json(
            _report_path(pathlib.Path(out), program),
            {"status": "OK", "program": program} | values,
        )
    for line in summary:
        print(line)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with columns of one width; what is very long is cut."""
    rows = [[_cut(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _cut(cell: str) -> str:
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 3]}..."


def differences(coverage: Coverage, rest: str) -> Iterator[str]:
    """The first tensors that are missing, left over or misshapen; `rest` says where all are."""
    columns = ("name", "difference", "found", "needed")
    rows = coverage.rows()
    if rows:
        cells = [[printable(str(row.get(key, ""))) for key in columns] for row in rows[:_SHOWN]]
        yield from table([columns, *cells])
    if len(rows) > _SHOWN:
        yield f"  ... and {len(rows) - _SHOWN} more, all {rest}"


def printable(text: str) -> str:
    """A name from a file, so that it cannot command the terminal."""
    return text if text.isprintable() else ascii(text)


def _report_path(out: pathlib.Path, program: str) -> pathlib.Path:
    if out.suffix in _MODEL_FILES and not out.is_dir():
        path = out.with_name(f"{out.name}.report.json")
    else:
        path = out / "report.json"
    if not path.exists() or _program_of(path) == program:
        return path
    own = path.with_name(path.name.replace("report.json", f"{program}.report.json"))
    print(f"{path} is of another program and stays; this report is {own}", file=sys.stderr)
    return own


def _program_of(path: pathlib.Path) -> str | None:
    try:
        found = read_json(path)
    except UserError:
        return None
    return found.get("program") if isinstance(found, dict) else None


def finish_training(values: dict[str, Any], out: str) -> int:
    """Print how a training run ended; its report is written already. Returns the exit code."""
    print(f"{values['status']}: {values['verdict']}")
    print(losses(values))
    print(f"{values['steps']} steps; report, records and curve in {out}")
    if values["model"] is not None:
        print(f"next: python -m experiments.export_checkpoint --apr={out}/model.apr --out={out}/hf")
    return 0 if values["status"] == "OK" else 1


def losses(values: dict[str, Any]) -> str:
    """The held-out losses of a training report, in one line."""
    before, after = (
        "not finite" if values[key] is None else f"{values[key]:.4f}"
        for key in ("initial_val_loss", "val_loss")
    )
    bits = values["val_loss_bits_per_byte"]
    return (
        f"held-out loss {before} -> {after} nats per token"
        + (f", {bits:.4f} bits per byte," if bits is not None else "")
        + f" over {values['val_tokens']:,} tokens; a uniform guess has {values['uniform_loss']:.4f}"
    )


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        missing = re.findall(r"Flag (--\w+) must have a value other than None", str(error))
        problem = f"{', '.join(missing)} must be given" if missing else " ".join(str(error).split())
        _stop(f"{problem} (see --help)")
    except SystemExit:
        sys.exit(0)  # only the flags for help leave here, and absl calls that a failure
    if len(rest) > 1:
        _stop(
            f"unexpected argument {rest[1]!r}: values need a flag, as in --NAME=VALUE (see --help)"
        )
    if empty := next(filter(_is_empty, flags.FLAGS), None):
        # A path of no characters would be the current folder.
        _stop(f"--{empty} is empty: give a value (is a variable of the shell not set?)")
    return rest


def _is_empty(name: str) -> bool:
    flag = flags.FLAGS[name]
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    return bool(flag.present) and "" in values


def _guarded(main: Callable[[], int]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it touches
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _stop(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
