"""Continue a prompt with an .apr model (or a HuggingFace folder).

python -m experiments.generate --apr=MODEL.apr --prompt='def main():'
"""

import pathlib
import time

import jax
import jax.numpy as jnp
from absl import flags

from apr_jax.codec import open_checkpoint
from apr_jax.errors import UserError
from apr_jax.files import read_json
from apr_jax.model import generate, load_model
from apr_jax.text import load_tokenizer
from apr_jax.text.pretokenizers import NAMEABLE
from experiments import program

_APR = flags.DEFINE_string("apr", None, "the model: an .apr file or a HuggingFace folder")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "a tokenizer file or folder; unset means the one beside the model"
)
_PRETOKENIZER = flags.DEFINE_enum(
    "pretokenizer",
    None,
    NAMEABLE,
    "how text is cut into words, for tokenizers that do not say it; unset means that they do",
)
_PROMPT = flags.DEFINE_string("prompt", None, "the text to continue")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 100, "tokens to add at most", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "divides the logits; 0 takes the likeliest token", lower_bound=0.0
)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "sample among the likeliest tokens that reach this probability; 1 is all"
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "decides every sample", lower_bound=0, upper_bound=2**32 - 1
)
_OUT = flags.DEFINE_string("out", None, "folder for report.json; unset writes none")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
flags.mark_flags_as_required(["apr", "prompt"])


def main() -> int:
    on_gpu = jax.default_backend() == "gpu"
    tokenizer_path = _TOKENIZER.value or _beside(pathlib.Path(_APR.value))
    tokenizer = load_tokenizer(tokenizer_path, pretokenizer=_PRETOKENIZER.value)
    model, params = load_model(_APR.value, compute_dtype=jnp.bfloat16 if on_gpu else jnp.float32)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{tokenizer_path}: has {tokenizer.vocab_size} tokens, the model has "
            f"{model.config.vocab_size} rows; use the model's own tokenizer"
        )
    prompt = tokenizer.encode(_PROMPT.value)
    ends = _ends(pathlib.Path(_APR.value), tokenizer.eos_id)
    start = time.perf_counter()
    ids = list(
        generate(
            model,
            params,
            prompt,
            max_tokens=_MAX_TOKENS.value,
            key=jax.random.key(_SEED.value),
            temperature=_TEMPERATURE.value,
            top_p=_TOP_P.value,
            eos_id=ends,
        )
    )
    seconds = time.perf_counter() - start
    text = tokenizer.decode([*prompt, *ids])
    values = {
        "apr": _APR.value,
        "tokenizer": str(tokenizer_path),
        "prompt": _PROMPT.value,
        "prompt_tokens": len(prompt),
        "text": text,
        "ids": ids,
        "tokens": len(ids),
        "seconds_with_compilation": seconds,
        "stopped_by": "max_tokens" if len(ids) == _MAX_TOKENS.value else "eos",
    }
    note = f"{len(ids)} tokens in {seconds:.1f} s on {jax.devices()[0].device_kind}"
    program.report(_OUT.value, values, [text, f"[{note}, with compilation]"])
    return 0


def _ends(model: pathlib.Path, eos_id: int | None) -> list[int]:
    """The ids that end a text: those of generation_config.json, else of the model or tokenizer."""
    with open_checkpoint(model) as checkpoint:
        found = checkpoint.config.eos_token_id
        for file in checkpoint.companions:
            if file.name == "generation_config.json":
                config = read_json(file)
                found = (config.get("eos_token_id") if isinstance(config, dict) else None) or found
    ends = found if isinstance(found, list) else [eos_id if found is None else found]
    if not all(end is None or type(end) is int for end in ends):
        raise UserError(f"{model}: eos_token_id={found!r} in generation_config.json is no token")
    return [end for end in ends if end is not None]


def _beside(model: pathlib.Path) -> pathlib.Path:
    """The folder of the tokenizer that travels with the model, or the model that holds it."""
    with open_checkpoint(model) as checkpoint:
        for file in checkpoint.companions:
            if file.name in _TOKENIZERS:
                return file.parent
        if not checkpoint.companions and checkpoint.companion_files():
            return model
    raise UserError(f"{model}: no tokenizer came with this model; name one by --tokenizer")


if __name__ == "__main__":
    program.run(main)
