"""Coverage-guided fuzzing of one door of the codec. `make fuzz` sets up what this needs.

python -m tests.fuzz.run DOOR CORPUS [libFuzzer options]

Stops at the first finding, an input after which a door raises, takes ten seconds or wants memory
far beyond its size, and leaves it beside the corpus. CORPUS keeps the inputs that reached new code,
from which the next run goes on.
"""

import hashlib
import pathlib
import random
import resource
import struct
import sys
import tempfile
import threading

import atheris
import numpy as np

with atheris.instrument_imports(include=["apr_jax.codec", "apr_jax.files"]):
    from tests.fuzz import doors

from apr_jax.codec import threads
from apr_jax.codec.header import HEADER_BYTES, sealed
from tests.fuzz.seeds import MAX_BYTES, seeds

_SPARE_BYTES = 512 << 20
_SECONDS = 10
_LENGTH = struct.Struct("<Q")


def main() -> None:
    door, corpus, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=_memory()) as scratch:
        folder = pathlib.Path(scratch)
        _plant(door, pathlib.Path(corpus), folder)
        defaults = [f"-max_len={MAX_BYTES}", f"-timeout={_SECONDS}", "-rss_limit_mb=0"]
        places = [f"-artifact_prefix={corpus}.", corpus]
        atheris.Setup(
            [sys.argv[0], *defaults, *options, *places],
            lambda data: doors.DOORS[door](data, folder),
            custom_mutator=_MUTATORS[door],
        )
        _start_threads()
        _limit_memory()
        atheris.Fuzz()


def _plant(door: str, corpus: pathlib.Path, folder: pathlib.Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(door, folder):
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def _mutate_apr(data: bytes, max_size: int, seed: int) -> bytes:
    """With the header's checksum mended, or hardly an input would get past it."""
    mutated = atheris.Mutate(data, max_size)
    if len(mutated) < HEADER_BYTES or not seed % 64:
        return mutated
    return sealed(mutated[:HEADER_BYTES]) + mutated[HEADER_BYTES:]


def _mutate_folder(data: bytes, max_size: int, seed: int) -> bytes:
    """One file of the folder; of a shard its JSON or its data, with the JSON's length mended."""
    choice = random.Random(seed)
    files = data.split(doors.SEPARATOR)
    at = choice.randrange(len(files))
    most = max(1, max_size - len(data) + len(files[at]))
    file = files[at]
    if at < 2 or len(file) <= _LENGTH.size or not choice.randrange(16):
        files[at] = atheris.Mutate(file, most)
    else:
        end = _LENGTH.size + _LENGTH.unpack_from(file)[0]
        text, values = file[_LENGTH.size : end], file[end:]
        if choice.randrange(4):
            text = atheris.Mutate(text, most)
        else:
            values = atheris.Mutate(values, most)
        files[at] = _LENGTH.pack(len(text)) + text + values
    return doors.SEPARATOR.join(files)[:max_size]


def _mutate(data: bytes, max_size: int, seed: int) -> bytes:
    return atheris.Mutate(data, max_size)


_MUTATORS = {"apr": _mutate_apr, "hf_folder": _mutate_folder, "gguf": _mutate}


def _start_threads() -> None:
    """All of them at once: the memory that each takes for itself is not what an input asks for."""
    number = threads.pool()._max_workers
    together = threading.Barrier(number)
    list(threads.pool().map(lambda _: (together.wait(), np.arange(1000).sum()), range(number)))


def _limit_memory() -> None:
    """What asks for more gets a MemoryError, which is a finding."""
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _SPARE_BYTES, resource.RLIM_INFINITY))


def _memory() -> str | None:
    """A folder that is in memory, where there is one."""
    return "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
