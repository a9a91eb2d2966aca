"""HuggingFace's logits of a model folder or GGUF, for `check_logits.py`; runs where torch is.

python -m tests.model.hf_logits PATH IDS.npy LOGITS.npy
"""

import pathlib
import sys

import numpy as np
import torch
import transformers


def main(path: str, ids: str, out: str) -> None:
    folder, gguf_file = pathlib.Path(path), None
    if folder.is_file():
        folder, gguf_file = folder.parent, folder.name
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.float32, output_loading_info=True
    )
    left = {key: value for key, value in info.items() if value}
    if left:
        sys.exit(f"{path}: transformers did not load it cleanly: {left}")
    with torch.no_grad():
        logits_BTV = model.eval()(torch.from_numpy(np.load(ids)).long()).logits
    np.save(out, logits_BTV.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
