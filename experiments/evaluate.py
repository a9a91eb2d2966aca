"""Measure a model's held-out loss: nats per token, and bits per byte of text."""

import math

from absl import flags

from apr_jax.codec import open_checkpoint
from apr_jax.files import finite
from apr_jax.text.batches import Shards
from apr_jax.train import gates
from apr_jax.train.data import EvalBatches, masking_eos
from apr_jax.train.devices import choose_loss, memory_explained, model_options, versions
from apr_jax.train.evaluate import evaluate_file
from apr_jax.train.parallel import DataParallel
from apr_jax.train.prepare import compare_tokenizer, require_positions
from experiments import program

_APR = flags.DEFINE_string("apr", None, "Model: .apr file or HuggingFace folder.")
_SHARDS = flags.DEFINE_string("shards", None, "Folder of held-out shards (encode_corpus).")
_OUT = flags.DEFINE_string("out", None, "Folder for report.json.")
_SEQ = flags.DEFINE_integer("seq_length", 1024, "Tokens a window.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Windows a batch, over all devices.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("val_tokens", 0, "Tokens from the start; 0: all.", lower_bound=0)
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
_PARALLEL = flags.DEFINE_enum("parallel", "pmap", ["pmap", "jit"], "How steps reach the devices.")
flags.mark_flags_as_required(["apr", "shards", "out"])


def main() -> int:
    """Run with the flags; 0 when the model knows more than a uniform guess."""
    shards, parallel = Shards(_SHARDS.value), DataParallel(_PARALLEL.value)
    with open_checkpoint(_APR.value) as checkpoint:
        config = checkpoint.config
        require_positions(checkpoint, _SEQ.value)
        unknown_tokenizer = compare_tokenizer(checkpoint, shards)
    parallel.check_batch(_BATCH.value, "batch_size")
    options = model_options(
        _DTYPE.value, _ATTENTION.value, mask_documents=_MASK.value, head_dim=config.head_dim
    )
    options |= choose_loss(_LOSS.value, config, options["compute_dtype"])
    shards.verify()  # reads them all, so after what can be told at once
    batches = EvalBatches(
        shards,
        seq_length=_SEQ.value,
        batch_size=_BATCH.value,
        tokens=_TOKENS.value,
        eos_id=masking_eos(shards, _MASK.value),
    )
    with memory_explained(f"lower batch_size ({_BATCH.value})"):
        found, config = evaluate_file(_APR.value, shards, batches, parallel, **options)
    uniform = math.log(config.vocab_size)
    gate = gates.below_uniform(found.loss, uniform)
    cause = gates.likely_cause(found.loss, uniform)
    verdict = f"if this model is a pretrained one: {cause or 'healthy'}"
    bits = found.bits_per_byte
    program.report(
        _OUT.value,
        {
            "status": "OK" if gate.passed else "MISSED",
            "verdict": verdict,
            "val_loss": finite(found.loss),
            "val_loss_bits_per_byte": bits,
            "uniform_loss": uniform,
            "val_tokens": found.tokens,
            "val_bytes": found.text_bytes,
            "seq_length": _SEQ.value,
            "gates": [gate.to_json()],
            "gates_not_asked": [{"id": "TOKENIZER", "reason": unknown_tokenizer}]
            if unknown_tokenizer
            else [],
            "compute_dtype": options["compute_dtype"].name,
            "attention": options["attention_impl"],
            "loss_impl": options["loss_impl"],
            "versions": versions(),
        },
        [
            f"held-out loss {found.loss:.4f} nats per token over {found.tokens:,} tokens"
            + (f", {bits:.4f} bits per byte" if bits is not None else ", bytes of text unknown"),
            f"a uniform guess has {uniform:.4f}; {verdict}",
        ],
    )
    return 0 if gate.passed else 1


if __name__ == "__main__":
    program.run(main)
