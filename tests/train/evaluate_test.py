"""Held-out losses by hand: nats per token, bits per byte, and what is not finite."""

import math

import jax
import numpy as np
import pytest

from apr_jax.codec import open_apr, open_checkpoint, write_apr
from apr_jax.text import load_tokenizer
from apr_jax.text.alphabet import SYMBOLS
from apr_jax.text.batches import Shards
from apr_jax.text.corpus import CorpusConfig, encode_corpus
from apr_jax.text.hex_format import hex_vocabulary, write_hex
from apr_jax.train import TrainError
from apr_jax.train.data import EvalBatches
from apr_jax.train.evaluate import Evaluation, Evaluator
from apr_jax.train.parallel import DataParallel
from apr_jax.train.prepare import compare_tokenizer
from tests.train.fixtures import write_model

VOCAB = 261


class Unigram:
    """Gives every position the same logits, so that losses can be counted by hand."""

    def __init__(self, logits_V):
        self.logits_V = logits_V

    def apply(self, variables, *, method, ids_BT, targets_BT, weights_BT):
        assert method == "cross_entropy"
        log_p_V = jax.nn.log_softmax(self.logits_V + variables["params"])
        nats = -jax.numpy.sum(weights_BT * log_p_V[targets_BT])
        return 2 * nats, nats  # what is minimised may be more


@pytest.fixture
def shards(tmp_path):
    """Two documents of bytes, "aé" (3 bytes) and "b", each ended by EOS."""
    write_hex(tmp_path / "tokenizer", hex_vocabulary([], "nfc"))
    (tmp_path / "text.jsonl").write_text('{"content": "aé"}\n{"content": "b"}\n')
    encode_corpus(
        CorpusConfig(
            inputs=(str(tmp_path / "text.jsonl"),),
            tokenizer=str(tmp_path / "tokenizer"),
            out=str(tmp_path / "shards"),
        )
    )
    return Shards(tmp_path / "shards")


def _evaluate(shards, logits_V, **options):
    options = dict(seq_length=4, batch_size=2, tokens=0, eos_id=None) | options
    batches = EvalBatches(shards, **options)
    evaluator = Evaluator(
        Unigram(np.asarray(logits_V, np.float32)), shards, batches, DataParallel("jit")
    )
    return evaluator(np.float32(0))


def test_bits_per_byte_counts_the_bytes_of_the_targets_alone(shards):
    assert shards.num_tokens == 6
    found = _evaluate(shards, np.zeros(VOCAB))
    # Every token but the first is a target; "a" was only an input, and EOS is no text.
    assert (found.tokens, found.text_bytes) == (5, 3)
    assert found.loss == pytest.approx(math.log(VOCAB))
    assert found.bits_per_byte == pytest.approx(5 * math.log2(VOCAB) / 3)


def test_padding_counts_for_nothing(shards):
    logits = np.zeros(VOCAB)
    logits[0] = 50.0  # the id that pads; a padded target would cost nothing
    short, long = _evaluate(shards, logits, seq_length=3), _evaluate(shards, logits, batch_size=7)
    assert short.tokens == long.tokens == 5
    assert short.loss == pytest.approx(long.loss) == pytest.approx(50.0, rel=1e-3)


def test_a_limit_takes_the_head_of_the_stream(shards):
    found = _evaluate(shards, np.zeros(VOCAB), seq_length=2, tokens=2)
    assert (found.tokens, found.text_bytes) == (2, 2)


def test_a_loss_that_is_not_finite_has_no_bits(shards):
    found = _evaluate(shards, np.full(VOCAB, np.nan))
    assert math.isnan(found.loss) and found.bits_per_byte is None


def test_without_the_bytes_there_are_no_bits():
    assert Evaluation(loss=1.0, tokens=10, text_bytes=None).bits_per_byte is None
    assert Evaluation(loss=1.0, tokens=10, text_bytes=0).bits_per_byte is None


def test_shards_of_another_tokenizer_are_refused(shards, tmp_path):
    model = write_model(tmp_path / "m.apr")
    with open_checkpoint(model) as checkpoint:
        assert (
            compare_tokenizer(checkpoint, shards) == "no tokenizer lies beside the model or in it"
        )
    write_hex(tmp_path / "m.tokenizer", hex_vocabulary([], "nfc"))
    with open_checkpoint(model) as checkpoint:
        assert compare_tokenizer(checkpoint, shards) is None
    write_hex(tmp_path / "m.tokenizer", hex_vocabulary([(102, 103)], "nfc"))
    with (
        open_checkpoint(model) as checkpoint,
        pytest.raises(TrainError, match="its ids are not the model's"),
    ):
        compare_tokenizer(checkpoint, shards)


def test_the_vocabulary_inside_a_model_is_compared_too(shards, tmp_path):
    write_model(tmp_path / "m.apr")
    with open_apr(tmp_path / "m.apr") as file:
        tensors, metadata = {name: file.read(name) for name in file.names}, file.metadata
    own = {
        "tokenizer.model": "gpt2",
        "tokenizer.pre_type": "qwen2",
        "tokenizer.vocabulary": [*SYMBOLS, "<|endoftext|>"],
        "tokenizer.token_type": [1] * 256 + [3],
        "tokenizer.merges": [],
    }
    write_apr(tmp_path / "own.apr", tensors, metadata | own)
    with open_checkpoint(tmp_path / "own.apr") as checkpoint:
        with pytest.raises(TrainError, match=r"another tokenizer than .*own\.apr"):
            compare_tokenizer(checkpoint, shards)
        shards.manifest["tokenizer_sha256"] = load_tokenizer(tmp_path / "own.apr").sha256
        assert compare_tokenizer(checkpoint, shards) is None
    write_apr(tmp_path / "other.apr", tensors, metadata | own | {"tokenizer.pre_type": "new"})
    with open_checkpoint(tmp_path / "other.apr") as checkpoint:
        assert "pre-tokeniser is 'new'" in compare_tokenizer(checkpoint, shards)
