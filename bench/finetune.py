"""Speed of fine-tuning a Qwen2.5-0.5B-shaped model with random weights on random tokens.

python -m bench.finetune --out=runs/bench --steps=40
Prints one row for the table in bench/results.md: tokens/s, memory and the wait for the first step.
"""

import pathlib
import shutil

import numpy as np
from absl import flags

from apr_jax.files import write_bytes
from apr_jax.train import TrainConfig, train
from bench.shapes import QWEN2_5_0_5B, write_random_model
from experiments import program

_OUT = flags.DEFINE_string("out", "runs/bench", "Folder for the model, the shards and the run.")
_STEPS = flags.DEFINE_integer("steps", 40, "Optimiser steps; the first is not timed.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Sequences a step.")
_SEQ = flags.DEFINE_integer("seq_length", 2048, "Tokens a sequence.")
_ATTENTION = flags.DEFINE_string("attention", "auto", "As experiments.finetune takes it.")
_LOSS = flags.DEFINE_string("loss_impl", "auto", "As experiments.finetune takes it.")
_PARALLEL = flags.DEFINE_string("parallel", "pmap", "As experiments.finetune takes it.")
_REMAT = flags.DEFINE_bool("remat", False, "As experiments.finetune takes it.")


def main() -> int:
    """Make what is missing, train, print the row."""
    out = pathlib.Path(_OUT.value)
    init, train_shards, val_shards = out / "init.apr", out / "train", out / "val"
    if not init.exists():
        write_random_model(init, QWEN2_5_0_5B)
    for folder, tokens, seed in ((train_shards, 4_000_000, 0), (val_shards, 40_000, 1)):
        if not folder.exists():
            write_random_shards(folder, tokens, QWEN2_5_0_5B.vocab_size, seed)
    impls = f"{_PARALLEL.value}-{_ATTENTION.value}-{_LOSS.value}"
    run = f"{impls}-b{_BATCH.value}-t{_SEQ.value}-remat{_REMAT.value}"
    shutil.rmtree(out / run, ignore_errors=True)  # a finished run would only be told again
    report = train(
        TrainConfig(
            init=str(init),
            shards=str(train_shards),
            val_shards=str(val_shards),
            out=str(out / run),
            mode="from_scratch",
            steps=_STEPS.value,
            batch_size=_BATCH.value,
            seq_length=_SEQ.value,
            attention=_ATTENTION.value,
            loss_impl=_LOSS.value,
            parallel=_PARALLEL.value,
            remat=_REMAT.value,
            lr=1e-5,
            eval_every=_STEPS.value,
            save_every=_STEPS.value,
            val_tokens=32_768,
        )
    )
    use = report["model_flops_utilisation"]
    print(
        f"| {report['versions']['device']} | {report['attention']}, loss {report['loss_impl']}, "
        f"{_PARALLEL.value}"
        f"{', remat' if _REMAT.value else ''}, B = {_BATCH.value}, T = {_SEQ.value} "
        f"| {report['tokens_per_second']:,.0f} "
        f"| {'unknown' if use is None else f'{use:.3f}'} "
        f"| {report['peak_memory_bytes'] / 1e9:.1f} GB "
        f"| {report['first_step_seconds']:.1f} s |"
    )
    return 0


def write_random_shards(folder: pathlib.Path, tokens: int, vocab_size: int, seed: int) -> None:
    """One shard of uniform ids: what is timed does not depend on what they mean."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, tokens)
    write_bytes(folder / "shard-00000.bin", ids.astype("<u4").tobytes())


if __name__ == "__main__":
    program.run(main)
