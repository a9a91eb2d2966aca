"""The whole main job in minutes on a CPU, on the running Python's own standard library.

Text -> tokenizer -> shards; a small Qwen2 as a HuggingFace folder -> .apr -> held-out loss ->
fine-tuning -> .apr and HuggingFace folder out, with a report, a log of every step and a curve.
"""

import hashlib
import json
import pathlib
import shutil
import sysconfig
import time
from collections.abc import Iterator
from typing import Any

from absl import flags
from safetensors.numpy import save_file

from apr_jax.codec import Qwen2Config, export_checkpoint, import_checkpoint
from apr_jax.codec.folders import atomic_folder
from apr_jax.files import atomic_write, write_json
from apr_jax.model import init_params, to_named
from apr_jax.text import Tokenizer, load_tokenizer
from apr_jax.text.corpus import CorpusConfig, encode_corpus, split_of
from apr_jax.text.documents import read_documents
from apr_jax.text.hex_format import hex_config, write_hex
from apr_jax.text.trainer import train_bpe
from apr_jax.train import TrainConfig, train
from experiments import program

_OUT = flags.DEFINE_string("out", "runs/quickstart", "Folder for everything that is made.")

_VOCAB_SIZE = 1024
_TOKENIZER_BYTES = 2_000_000  # of training text that the tokenizer is learnt from
_HELD_OUT = 0.1
_NOT_LIBRARY = frozenset(("site-packages", "dist-packages", "test", "tests", "idlelib"))


def main() -> int:
    """Run the job; 0 when every gate passed."""
    start, out = time.monotonic(), pathlib.Path(_OUT.value)
    _say(1, "corpus: the standard library of this Python, split by content hash")
    texts = write_corpus(out / "corpus")
    _say(
        2, f"tokenizer: byte-pair encoding with {_VOCAB_SIZE:,} tokens, learnt from the train part"
    )
    tokenizer = learn_tokenizer(out / "corpus" / "train.jsonl", out / "tokenizer")
    _say(3, "shards: the text as token ids, little-endian u32")
    shards = {part: encode(out, part) for part in ("train", "held_out")}
    _say(4, "model: a small Qwen2 with random weights, HuggingFace folder -> .apr, verified")
    write_model(out / "start-hf", tokenizer)
    imported = import_checkpoint(out / "start-hf", out / "start.apr")
    _say(5, "fine-tuning, with the held-out loss before the first step and after the last")
    if (out / "run" / "report.json").exists():
        shutil.rmtree(out / "run")  # finished before: train anew; a run that was cut off goes on
    trained = train(settings(out))
    _say(6, "out: .apr -> HuggingFace folder, read back and compared bit for bit")
    if trained["model"] is not None:
        export_checkpoint(out / "run" / "model.apr", out / "model-hf")
    report = trained | {
        "tokens": shards["train"]["tokens"],
        "documents": shards["train"]["documents"],
        "shards": shards["train"]["shards"],
        "unk_fraction": shards["train"]["unk_fraction"],
        "entropy_bits": shards["train"]["entropy_bits"],
        "distinct_tokens": shards["train"]["distinct_tokens"],
        "held_out_documents": shards["held_out"]["documents"],
        "corpus_bytes": texts,
        "imported_tensors": len(imported["tensors"]),
        "seconds": time.monotonic() - start,
    }
    program.report(out, report, summary(out, report))
    return 0 if report["status"] == "OK" else 1


def write_corpus(folder: pathlib.Path) -> int:
    """Write train.jsonl and held_out.jsonl, equal files to the same side. Returns the bytes."""
    total = 0
    with (
        atomic_write(folder / "train.jsonl") as train_file,
        atomic_write(folder / "held_out.jsonl") as held_out_file,
    ):
        for path, text in _library():
            held_out = split_of(text.encode(), _HELD_OUT)
            line = json.dumps({"path": path, "content": text}, ensure_ascii=False) + "\n"
            (held_out_file if held_out else train_file).write(line.encode())
            total += len(text.encode())
    return total


def learn_tokenizer(train_text: pathlib.Path, folder: pathlib.Path) -> Tokenizer:
    """Learn a vocabulary from the head of the training text and load it as a user would."""
    learnt = train_bpe(_head(train_text), _VOCAB_SIZE, 2, "nfc")
    write_hex(folder, learnt.vocabulary)
    return load_tokenizer(folder)


def encode(out: pathlib.Path, part: str) -> dict[str, Any]:
    """Encode one part of the corpus to its folder of shards."""
    return encode_corpus(
        CorpusConfig(
            inputs=(str(out / "corpus" / f"{part}.jsonl"),),
            tokenizer=str(out / "tokenizer" / "tokenizer.json"),
            out=str(out / "shards" / part),
            shard_tokens=1_000_000,
        )
    )


def write_model(folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Write the small Qwen2 as HuggingFace programs do: config, tensors, tokenizer."""
    config = Qwen2Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        tied=True,
        eos_token_id=tokenizer.eos_id,
    )
    with atomic_folder(folder) as new:
        tensors = to_named(init_params(config, seed=0))
        save_file(tensors, new / "model.safetensors", {"format": "pt"})
        write_json(new / "config.json", config.to_hf("float32"))
        write_json(new / "tokenizer.json", tokenizer.to_tokenizer_json())
        write_json(new / "tokenizer_config.json", hex_config())


def settings(out: pathlib.Path) -> TrainConfig:
    """Some hundred steps that two cores take in about a minute."""
    return TrainConfig(
        init=str(out / "start.apr"),
        shards=str(out / "shards" / "train"),
        val_shards=str(out / "shards" / "held_out"),
        out=str(out / "run"),
        mode="from_scratch",
        steps=500,
        batch_size=8,
        seq_length=128,
        lr=4e-3,
        warmup_steps=50,
        mask_documents=True,
        eval_every=100,
        val_tokens=32_768,
    )


def summary(out: pathlib.Path, report: dict[str, Any]) -> list[str]:
    """Five lines: what was made, where, and what to try next."""
    apr = out / "run" / "model.apr"
    made = f"model      {apr} ({report['parameters']:,} parameters), as HuggingFace folder "
    return [
        f"{report['status']} in {report['seconds']:.0f} s: {program.losses(report)}",
        made + str(out / "model-hf") if report["model"] else "model      none: the run was stopped",
        f"evidence   {out / 'report.json'}, every step {out / 'run' / 'records.jsonl'}, "
        f"curve {out / 'run' / 'loss.png'}",
        f"try next   python -m experiments.generate --apr={apr} --prompt='def main('",
        f"           python -m experiments.crosscheck --apr={apr} --reference={out / 'model-hf'} "
        f"--out={out / 'crosscheck'}",
    ]


def _library() -> list[tuple[str, str]]:
    """Names and texts, in the order of the texts' hashes, so that any part is a fair sample."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if _NOT_LIBRARY.isdisjoint(relative.parts):
            data = path.read_bytes()
            key = hashlib.sha256(data).digest(), relative.as_posix()
            files.append((key, data.decode("utf-8", errors="replace")))
    return [(name, text) for (_, name), text in sorted(files)]


def _head(train_text: pathlib.Path) -> Iterator[str]:
    size = 0
    for text in read_documents([train_text], "content", 0):
        size += len(text.encode())
        if size > _TOKENIZER_BYTES:
            return
        yield text


def _say(number: int, what: str) -> None:
    print(f"[{number}/6] {what}", flush=True)


if __name__ == "__main__":
    program.run(main)
