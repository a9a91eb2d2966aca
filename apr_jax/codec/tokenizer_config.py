"""The tokenizer_config.json that HuggingFace `transformers` reads beside a tokenizer.json."""

from typing import Any


def tokenizer_config(**special_tokens: str | None) -> dict[str, Any]:
    """The `tokenizer_config.json` with which `transformers` loads a tokenizer.json as it stands.

    `special_tokens` are by their role, such as eos_token="</s>"; None for one that there is not.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # transformers 5 takes its own tokenizer, with Qwen's pre-tokeniser, for every model of
        # type qwen2 whatever the class above says, unless there is an entry here. Nothing runs it.
        "auto_map": {"AutoTokenizer": [None, "tokenizer.Tokenizer"]},
        **special_tokens,
        "clean_up_tokenization_spaces": False,
    }
