"""HuggingFace's logits of a model folder, for `check_export.py`; runs where torch is.

python -m tests.model.hf_logits FOLDER IDS.npy LOGITS.npy
"""

import sys

import numpy as np
import torch
import transformers


def main(folder: str, ids: str, out: str) -> None:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    left = {key: value for key, value in info.items() if value}
    if left:
        sys.exit(f"{folder}: transformers did not load it cleanly: {left}")
    with torch.no_grad():
        logits_BTV = model.eval()(torch.from_numpy(np.load(ids)).long()).logits
    np.save(out, logits_BTV.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
