"""Records HuggingFace's logits in tests/data/qwen2_golden; `make oracle` runs it where torch is.

From the project's root: .venv-oracle/bin/python -m tests.model.make_golden
"""

import itertools
import json

import numpy as np
import torch
import transformers

from tests.model.golden import FOLDER, weights

BATCH, LENGTH = 2, 33


def cases() -> dict[str, dict[str, object]]:
    """A `config.json` for each mix of head size, query heads a kv head, and tied or own head.

    All of Qwen2; of Llama, which lacks some biases alone, one with each kind of head.
    """
    configs = {}
    for head_dim, group, tied in itertools.product((64, 128), (1, 2, 6, 7, 8), (True, False)):
        name = f"h{head_dim}_g{group}_{'tied' if tied else 'untied'}"
        configs[name] = {
            "model_type": "qwen2",
            "vocab_size": 61,
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 2 * group,
            "num_key_value_heads": 2,
            "head_dim": head_dim,
            "max_position_embeddings": 64,
            "rope_theta": 1e6 if tied else 1e4,
            "rms_norm_eps": 1e-6 if head_dim == 64 else 1e-5,
            "tie_word_embeddings": tied,
        }
    for head in ("tied", "untied"):
        # `transformers` wants the hidden size of a Llama to be a multiple of the heads.
        changes = {"model_type": "llama", "hidden_size": 48}
        configs[f"llama_{head}"] = configs[f"h64_g6_{head}"] | changes
    return configs


def build(config: dict[str, object], seed: int) -> transformers.PreTrainedModel:
    """HuggingFace's model in float32 with our weights."""
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(
            **config, rope_parameters=rope, attn_implementation="eager"
        )
    )
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    tensors = {name: torch.from_numpy(value) for name, value in weights(shapes, seed).items()}
    missing, extra = model.load_state_dict(tensors, strict=False)
    assert not extra and set(missing) <= {"lm_head.weight"}, (missing, extra)
    model.tie_weights()
    return model.float().eval()


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    index: dict[str, object] = {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cases": {},
    }
    for seed, (name, config) in enumerate(cases().items()):
        rng = np.random.default_rng([seed, 1])
        ids_BT = rng.integers(0, config["vocab_size"], (BATCH, LENGTH), dtype=np.int32)
        with torch.no_grad():
            logits_BTV = build(config, seed)(torch.from_numpy(ids_BT).long()).logits.numpy()
        np.savez(FOLDER / f"{name}.npz", ids_BT=ids_BT, logits_BTV=logits_BTV)
        index["cases"][name] = {"seed": seed, "config": config}
    (FOLDER / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"{len(index['cases'])} models recorded in {FOLDER}")


if __name__ == "__main__":
    main()
