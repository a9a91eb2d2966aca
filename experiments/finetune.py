"""Fine-tune a model on shards, with a held-out loss before, during and after.

Killed runs go on from their last checkpoint when the same command is given again.
"""

from absl import flags

from apr_jax.train import TrainConfig, train
from experiments import program

_INIT = flags.DEFINE_string("init", None, "Model to start from: .apr file or HuggingFace folder.")
_SHARDS = flags.DEFINE_string("shards", None, "Folder of training shards (encode_corpus).")
_VAL_SHARDS = flags.DEFINE_string("val_shards", None, "Folder of held-out shards.")
_OUT = flags.DEFINE_string("out", None, "Folder of the run: model.apr, report.json, records.")
_STEPS = flags.DEFINE_integer("steps", None, "Optimiser steps.")
_MODE = flags.DEFINE_enum(
    "mode",
    "finetune",
    ["finetune", "from_scratch"],
    "Which defaults: of lr, warmup_steps, target_val_loss and the caps on the held-out loss.",
)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Sequences a step, over all devices.")
_ACCUMULATE = flags.DEFINE_integer("accumulate", 1, "Micro-batches a step; 1: none.")
_SEQ = flags.DEFINE_integer("seq_length", 1024, "Tokens a sequence.")
_LR = flags.DEFINE_float("lr", None, "Peak learning rate; default by mode (5e-5, 3e-4).")
_WARMUP = flags.DEFINE_integer("warmup_steps", None, "Linear warm-up; default by mode (100, 1000).")
_DECAY = flags.DEFINE_float("weight_decay", 0.01, "AdamW decay of matrices.")
_CLIP = flags.DEFINE_float("clip", 1.0, "Largest global gradient norm; 0: no clipping.")
_Z_LOSS = flags.DEFINE_float(
    "z_loss", 0.0, "Factor of the squared log-normaliser, minimised beside the loss; 0: none."
)
_SEED = flags.DEFINE_integer("seed", 42, "Order of the training windows.")
_MASK = flags.DEFINE_bool("mask_documents", False, "Keep attention inside each document.")
_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "auto", ["auto", "float32", "bfloat16"], "auto: bfloat16 on a GPU."
)
_ATTENTION = flags.DEFINE_enum(
    "attention",
    "auto",
    ["auto", "xla", "cudnn", "pallas"],
    "auto: pallas on Hopper GPUs, cudnn on others without masked documents, else xla.",
)
_LOSS = flags.DEFINE_enum(
    "loss_impl", "auto", ["auto", "xla", "pallas"], "auto: pallas on Hopper GPUs, else xla."
)
_REMAT = flags.DEFINE_bool("remat", False, "Recompute layers backward: less memory, more time.")
_PARALLEL = flags.DEFINE_enum("parallel", "pmap", ["pmap", "jit"], "How steps reach the devices.")
_SAVE_DTYPE = flags.DEFINE_enum(
    "save_dtype",
    "keep",
    ["keep", "float32", "bfloat16", "float16"],
    "Of model.apr; keep: what each tensor had in --init.",
)
_EVAL_EVERY = flags.DEFINE_integer("eval_every", 100, "Steps between held-out evaluations.")
_VAL_TOKENS = flags.DEFINE_integer("val_tokens", 131_072, "Held-out tokens each; 0: all.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps between checkpoints.")
_TARGET = flags.DEFINE_float(
    "target_val_loss",
    None,
    "Final held-out loss asked for, nats; 0: none; by mode 2.2, none.",
)
_MAX_INITIAL = flags.DEFINE_float(
    "max_initial_val_loss",
    None,
    "Refuse a worse start, nats; 0: never; by mode 4.0, never.",
)
_MAX_OVERLAP = flags.DEFINE_integer(
    "max_overlap", 0, "Held-out documents that may be in the training shards too."
)
_MIN_LOSS = flags.DEFINE_float(
    "min_val_loss", 0.3, "A final held-out loss below this is too good to be true; 0: never."
)
flags.mark_flags_as_required(["init", "shards", "val_shards", "out", "steps"])


def main() -> int:
    """Run with the flags; 0 when every gate passed."""
    config = TrainConfig(
        init=_INIT.value,
        shards=_SHARDS.value,
        val_shards=_VAL_SHARDS.value,
        out=_OUT.value,
        steps=_STEPS.value,
        mode=_MODE.value,
        batch_size=_BATCH.value,
        accumulate=_ACCUMULATE.value,
        seq_length=_SEQ.value,
        lr=_LR.value,
        warmup_steps=_WARMUP.value,
        weight_decay=_DECAY.value,
        clip=_CLIP.value,
        z_loss=_Z_LOSS.value,
        seed=_SEED.value,
        mask_documents=_MASK.value,
        compute_dtype=_DTYPE.value,
        attention=_ATTENTION.value,
        loss_impl=_LOSS.value,
        remat=_REMAT.value,
        parallel=_PARALLEL.value,
        save_dtype=_SAVE_DTYPE.value,
        eval_every=_EVAL_EVERY.value,
        val_tokens=_VAL_TOKENS.value,
        save_every=_SAVE_EVERY.value,
        target_val_loss=_TARGET.value,
        max_initial_val_loss=_MAX_INITIAL.value,
        max_overlap=_MAX_OVERLAP.value,
        min_val_loss=_MIN_LOSS.value,
    )
    return program.finish_training(train(config), config.out)


if __name__ == "__main__":
    program.run(main)
