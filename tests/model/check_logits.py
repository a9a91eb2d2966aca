"""Has transformers the same logits as we for a HuggingFace folder or a GGUF? After `make oracle`:

.venv/bin/python -m tests.model.check_logits PATH
"""

import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from apr_jax.model import load_model

ROOT = pathlib.Path(__file__).parent.parent.parent
LENGTH = 64
RELATIVE_L2 = 1e-4


def main(path: str) -> int:
    model, params = load_model(path)
    rng = np.random.default_rng(0)
    ids_BT = rng.integers(0, model.config.vocab_size, (1, LENGTH), dtype=np.int32)
    ours_BTV = np.asarray(jax.jit(model.apply)({"params": params}, ids_BT), np.float64)
    theirs_BTV = huggingface(pathlib.Path(path).absolute(), ids_BT).astype(np.float64)
    difference_BTV = ours_BTV - theirs_BTV
    relative = np.linalg.norm(difference_BTV) / np.linalg.norm(theirs_BTV)
    agreement = np.mean(ours_BTV.argmax(axis=-1) == theirs_BTV.argmax(axis=-1))
    print(
        f"{path}: relative L2 {relative:.1e}, largest difference {abs(difference_BTV).max():.1e} "
        f"of logits up to {abs(theirs_BTV).max():.1f}, same likeliest token {agreement:.0%}"
    )
    return int(not relative <= RELATIVE_L2)


def huggingface(path: pathlib.Path, ids_BT: np.ndarray) -> np.ndarray:
    """Logits BTV of the same ids by transformers, in the oracle's environment."""
    with tempfile.TemporaryDirectory() as work:
        ids, logits = pathlib.Path(work) / "ids.npy", pathlib.Path(work) / "logits.npy"
        np.save(ids, ids_BT)
        python = ROOT / ".venv-oracle" / "bin" / "python"
        command = [python, "-m", "tests.model.hf_logits", path, ids, logits]
        subprocess.run(command, cwd=ROOT, check=True)
        return np.load(logits)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
