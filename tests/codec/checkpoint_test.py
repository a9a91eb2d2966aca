"""One view of every format: configuration, names, and whether the head is tied."""

import ml_dtypes
import numpy as np
import pytest

from apr_jax.codec import ConfigError, errors, open_apr, open_checkpoint, write_apr
from apr_jax.codec.compare import same_bits
from apr_jax.codec.qwen2 import EMBEDDING, HEAD
from tests.codec import small


def write(path, values, *, tied=True, dtypes=None, **changes):
    metadata = small.config(tied=tied).to_apr() | changes
    metadata = {key: value for key, value in metadata.items() if value is not None}
    write_apr(path, values, metadata, dtypes=dtypes)
    return path


@pytest.mark.parametrize("name", ["qwen2_bf16_stream.apr", "qwen2_bf16_single_tied.apr"])
def test_models_of_the_reference_importer_are_tied(name):
    with (
        open_checkpoint(small.DATA / name, strict=True) as checkpoint,
        open_apr(small.DATA / name) as file,
    ):
        assert checkpoint.format == "apr" and checkpoint.config.tied
        assert HEAD not in checkpoint.names and checkpoint.coverage().complete
        assert set(checkpoint.left_out) == {HEAD} & set(file.names)
        assert checkpoint.problems == []
        for tensor in checkpoint.names:
            assert same_bits(checkpoint.read(tensor), file.read(tensor))


@pytest.mark.parametrize("claim", [True, False, None])
def test_no_head(tmp_path, claim):
    path = write(tmp_path / "a.apr", small.tensors(), tied_embeddings=claim)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.tied == (claim is not False)
        assert checkpoint.coverage().missing == ((HEAD,) if claim is False else ())
        assert not checkpoint.left_out


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("claim", [True, False, None])
def test_an_equal_head_is_tied_unless_the_file_says_otherwise(tmp_path, claim, dtype):
    values = small.finite_tensors()
    values = small.with_head(values, values[EMBEDDING].astype(dtype))
    path = write(tmp_path / "a.apr", values, tied_embeddings=claim)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.tied == (claim is not False)
        assert checkpoint.coverage().complete
        if checkpoint.config.tied:
            assert "tied" in checkpoint.left_out[HEAD]
            with pytest.raises(errors.NoSuchTensor, match="tied"):
                checkpoint.read(HEAD)


def test_an_equal_head_with_nans_is_tied(tmp_path):
    values = small.tensors()
    path = write(tmp_path / "a.apr", small.with_head(values, values[EMBEDDING]))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.tied


@pytest.mark.parametrize("claim", [True, False, None])
@pytest.mark.parametrize("element", [0, -1])
def test_a_differing_head_is_untied_whatever_the_file_says(tmp_path, claim, element):
    values = small.finite_tensors()
    head = values[EMBEDDING].copy()
    head.reshape(-1)[element] += 1
    path = write(tmp_path / "a.apr", small.with_head(values, head), tied_embeddings=claim)
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.config.tied and HEAD in checkpoint.names
        assert checkpoint.coverage().complete and same_bits(checkpoint.read(HEAD), head)
        kinds = [type(problem) for problem in checkpoint.problems]
        assert kinds == ([errors.HeadClaim] if claim is True else [])
    if claim is True:
        with pytest.raises(errors.HeadClaim, match="read as untied"):
            open_checkpoint(path, strict=True)


@pytest.mark.parametrize("shape", [(24,), (8, 24), ()])
def test_a_head_of_another_shape_is_a_mismatch(tmp_path, shape):
    values = small.with_head(small.tensors(), np.zeros(shape, np.float32))
    with open_checkpoint(write(tmp_path / "a.apr", values)) as checkpoint:
        assert checkpoint.coverage().shape_mismatch == ((HEAD, shape, (24, 8)),)
        with pytest.raises(errors.IncompleteModel, match=r"lm_head.weight is .*needs \[24, 8\]"):
            checkpoint.require_complete()


def placeholder(path, names):
    """Take the bytes of tensors from a file's index, as an importer's placeholder has none."""
    data = bytearray(path.read_bytes())
    for name in names:
        at = data.index(name.encode()) + len(name) + 2 + 16 + 8
        data[at : at + 8] = bytes(8)
    path.write_bytes(data)


def test_a_head_without_bytes_is_tied_if_the_embedding_has_some(tmp_path):
    values = small.tensors()
    path = write(tmp_path / "a.apr", small.with_head(values, values[EMBEDDING]))
    placeholder(path, [HEAD])
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.tied and checkpoint.coverage().complete
    placeholder(path, [EMBEDDING])
    with pytest.raises(errors.HeadError, match="placeholder without bytes"):
        open_checkpoint(path)


def test_a_tensor_without_its_bytes_is_not_read(tmp_path):
    path = write(tmp_path / "a.apr", small.tensors())
    placeholder(path, [EMBEDDING])
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(errors.SizeMismatch, match=r"'model.embed_tokens.weight': has 0 elements"),
    ):
        checkpoint.read(EMBEDDING)


def test_hugging_face_heads(tmp_path):
    values = small.tensors()
    equal = small.with_head(values, values[EMBEDDING].copy())
    with open_checkpoint(small.hf_folder(tmp_path / "equal", equal)) as checkpoint:
        assert checkpoint.config.tied and HEAD in checkpoint.left_out
    with open_checkpoint(small.hf_folder(tmp_path / "own", equal, tied=False)) as checkpoint:
        assert not checkpoint.config.tied and HEAD in checkpoint.names
    other = small.with_head(values, np.zeros_like(values[EMBEDDING]))
    with pytest.raises(errors.HeadError, match="tie_word_embeddings=true"):
        open_checkpoint(small.hf_folder(tmp_path / "other", other))


def test_buffers_are_left_out_and_other_tensors_are_not(tmp_path):
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    values = small.tensors() | {buffer: np.zeros(2, np.float32), "extra": np.zeros(1, np.float32)}
    with open_checkpoint(write(tmp_path / "a.apr", values)) as checkpoint:
        assert set(checkpoint.left_out) == {buffer}
        assert checkpoint.coverage().extra == ("extra",)


def test_quantised_tensors_are_float32(tmp_path):
    values = small.finite_tensors()
    path = write(tmp_path / "a.apr", values, dtypes=dict.fromkeys(values, "Q6_K"))
    with open_checkpoint(path) as checkpoint, open_apr(path) as file:
        assert file.info(EMBEDDING).dtype == "Q6_K" and checkpoint.is_quantised(EMBEDDING)
        assert checkpoint.dtype(EMBEDDING) == np.float32
        assert checkpoint.nbytes(EMBEDDING) == 4 * values[EMBEDDING].size
        assert same_bits(checkpoint.read(EMBEDDING), file.read(EMBEDDING))
        np.testing.assert_allclose(
            checkpoint.read(EMBEDDING), values[EMBEDDING].astype(np.float32), atol=0.06
        )


def test_a_quantised_head_is_tied_if_it_has_the_embeddings_bytes(tmp_path):
    values = small.finite_tensors()
    values = small.with_head(values, values[EMBEDDING])
    types = {EMBEDDING: "Q4_K", HEAD: "Q4_K"}
    with open_checkpoint(
        write(tmp_path / "a.apr", values, dtypes=types, tied_embeddings=None)
    ) as checkpoint:
        assert checkpoint.config.tied and HEAD in checkpoint.left_out
    values[HEAD] = -values[HEAD]
    for types[HEAD] in ("Q4_K", "Q6_K"):
        path = write(tmp_path / "b.apr", values, dtypes=types, tied_embeddings=None)
        with open_checkpoint(path) as checkpoint:
            assert not checkpoint.config.tied


def test_every_tensor_in_one_type(tmp_path):
    values = small.finite_tensors(dtype=np.float32)
    path = write(tmp_path / "a.apr", values, dtypes={EMBEDDING: "Q8"})
    with open_checkpoint(path) as own, open_checkpoint(path, dtype=ml_dtypes.bfloat16) as cast:
        for name in values:
            assert cast.dtype(name) == ml_dtypes.bfloat16
            assert cast.nbytes(name) == 2 * values[name].size
            assert same_bits(cast.read(name), own.read(name).astype(ml_dtypes.bfloat16))


def test_a_type_too_narrow_for_a_value_is_refused(tmp_path):
    values = small.finite_tensors() | {"model.norm.weight": np.full(8, 7e4, np.float32)}
    path = write(tmp_path / "a.apr", values)
    with open_checkpoint(path, dtype=np.float16) as checkpoint:
        assert checkpoint.read(EMBEDDING).dtype == np.float16
        with pytest.raises(errors.OutOfRange, match=r"'model.norm.weight': .*range of float16"):
            checkpoint.read("model.norm.weight")


def test_types_that_apr_has_not_are_named(tmp_path):
    values = small.tensors() | {"model.norm.weight": np.zeros(8, np.uint16)}
    with (
        open_checkpoint(small.hf_folder(tmp_path / "hf", values)) as checkpoint,
        pytest.raises(errors.UnsupportedDtype, match=r"'model.norm.weight': has type U16"),
    ):
        checkpoint.read("model.norm.weight")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.gguf", b"GGUF\3\0\0\0", "not a sound GGUF file"),
        ("a.bin", b"\x80\x04pickle", "neither an .apr or GGUF file"),
        ("a.apr", b"PK\3\4" + bytes(64), "not an APR v2 file"),
        ("a.apr", b"", "has 0 bytes"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.AprError, match=message):
        open_checkpoint(tmp_path / name)
    with pytest.raises(errors.Unreadable, match="No such file"):
        open_checkpoint(tmp_path / "none")


def test_an_apr_without_the_numbers_of_a_model(tmp_path):
    path = write(tmp_path / "a.apr", small.tensors(), rope_theta=None)
    with pytest.raises(ConfigError, match=r"a\.apr: has no rope_theta"):
        open_checkpoint(path)
