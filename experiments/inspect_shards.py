"""Show what a folder of shards holds, and figures of any window of its stream.

python -m experiments.inspect_shards --shards=runs/train --start=0 --tokens=32768
"""

from absl import flags

from apr_jax.errors import UserError
from apr_jax.text.batches import Shards
from apr_jax.text.statistics import statistics
from experiments import program

_SHARDS = flags.DEFINE_string("shards", None, "Folder of shards, of encode_corpus or the original.")
_START = flags.DEFINE_integer("start", 0, "Token at which the window begins.", lower_bound=0)
_TOKENS = flags.DEFINE_integer(
    "tokens", 0, "Tokens in the window; 0 takes all that follow.", lower_bound=0
)
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Read all shards and compare them with the manifest's hashes."
)
_OUT = flags.DEFINE_string("out", None, "Folder for report.json; unset writes none.")
flags.mark_flag_as_required("shards")

# What a manifest says of all shards; what it says of each one is in the file itself.
_SHOWN = ("tokenizer_sha256", "vocab_size", "normalization", "eos_policy", "eos_id", "compat")
_HASHES = {
    None: "hashes: not compared, --verify does",
    False: "hashes: there are none to compare with",
    True: "hashes: all as in the manifest",
}


def main() -> int:
    shards = Shards(_SHARDS.value)
    start, stop = _START.value, _START.value + _TOKENS.value
    if not _TOKENS.value:
        stop = shards.num_tokens
    if not start < stop <= shards.num_tokens:
        raise UserError(
            f"{_SHARDS.value}: the window {start}:{stop} is not inside its {shards.num_tokens} "
            "tokens; choose another --start and --tokens"
        )
    verified = shards.verify() if _VERIFY.value else None
    window = statistics(shards, start, stop)
    manifest = shards.manifest or {"eos_id": shards.eos_id}
    settings = {key: manifest[key] for key in _SHOWN if key in manifest}
    values = {"all_tokens": shards.num_tokens, "window": window, "settings": settings}
    values["verified"] = verified
    lines = [f"{_SHARDS.value}: {shards.num_tokens:,} tokens", f"  {_HASHES[verified]}"]
    lines += [f"  {key}: {program.printable(str(value))}" for key, value in settings.items()]
    lines += [f"window {start:,} to {stop:,}", *map(_line, window.items())]
    program.report(_OUT.value, values, lines)
    return 0


def _line(item: tuple[str, float | None]) -> str:
    key, value = item
    if value is None:
        return f"  {key}: unknown, the shards do not say"
    return f"  {key}: {value:,.4f}" if isinstance(value, float) else f"  {key}: {value:,}"


if __name__ == "__main__":
    program.run(main)
