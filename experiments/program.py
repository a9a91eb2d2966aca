"""What every program here shares: flags in, one call, a report and an exit code out."""

import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from apr_jax.errors import UserError
from apr_jax.files import write_json


def run(main: Callable[[], int]) -> None:
    """Parse the flags and run `main`; its result is the exit code: 0 success, 1 failed verdict.

    Bad usage and `UserError`s become one line on stderr and exit code 2.
    """
    app.run(lambda _: sys.exit(_guarded(main)), flags_parser=_parse)


def report(
    out: str | os.PathLike[str] | None, values: dict[str, Any], summary: Sequence[str]
) -> None:
    """Write `values` to `out`/report.json (when there is an `out`) and print the summary lines.

    The report's `status` is OK unless `values` say otherwise.
    """
    if out:
        write_json(pathlib.Path(out) / "report.json", {"status": "OK"} | values)
    for line in summary:
        print(line)


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
    return rest


def _guarded(main: Callable[[], int]) -> int:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it touches
    try:
        return main()
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
