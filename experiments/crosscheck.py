"""Say whether a checkpoint is the reference's model, and if not, what is wrong with it."""

from absl import flags

from apr_jax.diagnose import crosscheck
from experiments import program

_APR = flags.DEFINE_string("apr", None, "The checkpoint in doubt: .apr file or HuggingFace folder.")
_REFERENCE = flags.DEFINE_string(
    "reference", None, "What it should be: HuggingFace folder or .apr."
)
_OUT = flags.DEFINE_string("out", None, "Folder for report.json.")
_POSITIONS = flags.DEFINE_integer(
    "positions", 48, "Length of the random sequence that both models run on.", lower_bound=2
)
flags.mark_flags_as_required(["apr", "reference", "out"])

_SHOWN = 10


def main() -> int:
    """Run with the flags; 0 when it is the same model and the forward pass computes it."""
    found = crosscheck(_APR.value, _REFERENCE.value, positions=_POSITIONS.value)
    faults = found["faults"]
    lines = [f"{fault['id']:12} {fault['where']}: {fault['says']}" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"and {len(faults) - _SHOWN} more in {_OUT.value}/report.json")
    status = "MISSED" if faults else "OK"
    program.report(_OUT.value, {"status": status, **found}, [*lines, found["verdict"]])
    return 1 if faults else 0


if __name__ == "__main__":
    program.run(main)
