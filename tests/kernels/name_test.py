"""`kernels` is a HuggingFace package's name too: transformers must not take ours for it."""

import json
import pathlib
import subprocess
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROOT = pathlib.Path(__file__).parent.parent.parent

SCRIPT = """
import kernels, transformers
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import is_kernels_available
assert not is_kernels_available()
assert AutoConfig.for_model("qwen2", hidden_size=40).hidden_size == 40
tokenizer = AutoTokenizer.from_pretrained(%r)
assert tokenizer.decode(tokenizer("def f(): pass")["input_ids"]) == "def f(): pass"
print(kernels.__file__)
"""


def test_transformers_works_beside_ours(tmp_path: pathlib.Path) -> None:
    vocabulary = {character: id for id, character in enumerate("def():pasĠ")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT % str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert pathlib.Path(result.stdout.strip()) == ROOT / "kernels" / "__init__.py"
