"""Types that lie are told by the words; ordinary weights are left alone."""

import ml_dtypes
import numpy as np
import pytest

from apr_jax.codec import errors, import_checkpoint, open_apr, open_checkpoint, write_apr
from apr_jax.codec.mislabel import OTHER, TAGS, mislabelled
from apr_jax.model import load_model
from tests.codec import ggufs, small

NORMS = ("model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight")
FINAL, BIAS, MATRIX = "model.norm.weight", "model.layers.0.self_attn.q_proj.bias", "m.weight"
DISTRIBUTIONS = ("normal", "laplace", "logistic", "uniform", "standard_t")


def draw(rng, kind, size):
    arguments = {"uniform": (-1, 1), "standard_t": (3,)}.get(kind, ())
    return getattr(rng, kind)(*arguments, size=size)


def judge(named, true, tag):
    """Values stored in the type `true` under the tag `tag`."""
    words = {name: array.astype(TAGS[true]).view(np.uint16) for name, array in named.items()}
    return mislabelled(dict.fromkeys(named, tag), lambda name: words[name].reshape(-1))


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_matrices_and_biases_at_any_scale(kind, tag):
    rng = np.random.default_rng(0)
    for scale in 10.0 ** np.arange(-5, 3):
        for name, size in ((MATRIX, 70_000), (BIAS, 64), ("model.embed_tokens.weight", 4096)):
            named = {name: scale * draw(rng, kind, size)}
            assert judge(named, tag, tag) == {}, (scale, name)
            wrong = judge(named, OTHER[tag], tag)
            assert wrong.keys() == {name}, (scale, name)
            assert f"as {tag} and" in wrong[name] and f"as {OTHER[tag]}" in wrong[name]


@pytest.mark.parametrize("tag", TAGS)
def test_norms_of_sound_models_are_left_alone(tag):
    rng = np.random.default_rng(0)
    for mean in (0.06, 0.1, 0.3, 0.5, 0.9, 1, 1.2, 1.5, 2, 3, 5, 7.46, 20, 100):
        for spread in (0.05, 0.1, 0.3):
            named = {name: mean * (1 + spread * rng.normal(size=896)) for name in (*NORMS, FINAL)}
            assert judge(named, tag, tag) == {}, (mean, spread)
    # The first norms of some models hardly let anything through.
    tiny = {NORMS[0]: 0.008 * (1 + 0.3 * rng.normal(size=896)), FINAL: 1 + rng.normal(size=896) / 9}
    assert judge(tiny, tag, tag) == {}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("mean, spread", [(1, 0), (0.98, 0.06), (1, 0.1), (7.46, 0.11)])
def test_norms_under_a_wrong_tag(tag, mean, spread):
    rng = np.random.default_rng(0)
    named = {name: mean * (1 + spread * rng.normal(size=896)) for name in (*NORMS, FINAL)}
    assert judge(named, OTHER[tag], tag).keys() == named.keys()


@pytest.mark.parametrize("tag", TAGS)
def test_a_model_that_was_never_trained_is_left_alone(tag):
    """Its norms are all exactly 1 and its biases zero."""
    rng = np.random.default_rng(0)
    named = {name: np.ones(896) for name in (*NORMS, FINAL)}
    named |= {BIAS: np.zeros(896), MATRIX: 0.02 * rng.normal(size=70_000)}
    assert judge(named, tag, tag) == {}
    assert judge({name: named[name] for name in (*NORMS, FINAL)}, tag, tag) == {}
    assert judge(named, OTHER[tag], tag).keys() >= {*NORMS, FINAL, MATRIX}


@pytest.mark.parametrize("tag", TAGS)
def test_odd_norms_beside_sound_matrices_are_left_alone(tag):
    rng = np.random.default_rng(0)
    sound = {MATRIX: 0.02 * rng.normal(size=70_000)}
    for mean in (0.008, 0.01, 1.8, 2.5):
        norms = {name: mean * (1 + 0.01 * rng.normal(size=896)) for name in (*NORMS, FINAL)}
        assert judge(sound | norms, tag, tag) == {}, mean


@pytest.mark.parametrize("spread", [0.02, 0.06, 0.1])
def test_norms_around_1_under_a_wrong_tag_beside_sound_matrices(spread):
    rng = np.random.default_rng(0)
    names = (*NORMS, FINAL)
    norms = {name: 1 + spread * rng.normal(size=896) for name in names}
    words = {name: array.astype(TAGS["BF16"]).view(np.uint16) for name, array in norms.items()}
    words[MATRIX] = (0.02 * rng.normal(size=70_000)).astype(np.float16).view(np.uint16)
    assert mislabelled(dict.fromkeys(words, "F16"), words.__getitem__).keys() == {*names}


@pytest.mark.parametrize("tag", TAGS)
def test_what_says_nothing_itself_follows_the_tensors_of_its_tag(tag):
    rng = np.random.default_rng(0)
    named = {
        MATRIX: 0.02 * rng.normal(size=5000),
        NORMS[0]: 1.5 * (1 + 0.3 * rng.normal(size=896)),
        BIAS: rng.normal(size=12),
    }
    assert judge(named, OTHER[tag], tag).keys() == named.keys()
    assert judge(named, tag, tag) == {}


@pytest.mark.parametrize("tag", TAGS)
def test_random_bits_zeros_and_few_values_say_nothing(tag):
    rng = np.random.default_rng(0)
    tags = {MATRIX: tag, FINAL: tag, BIAS: tag}
    for words in (
        rng.integers(0, 1 << 16, 9000).astype(np.uint16),
        np.zeros(100, np.uint16),
        np.empty(0, np.uint16),
        np.full(100, 0x7FFF, np.uint16),
        np.array([0x3C00, 0xBC00] * 100, np.uint16),
    ):
        assert not set(mislabelled(tags, lambda name, words=words: words)) & {MATRIX, BIAS}


@pytest.mark.parametrize("columns", [64, 1024])
@pytest.mark.parametrize("scale", [0.016, 1.0])
@pytest.mark.parametrize("levels", [2, 3, 4, 15])
def test_matrices_of_few_values_by_design_are_left_alone(levels, scale, columns):
    """As quantised models are that were decoded to F16: a few multiples of each row's scale."""
    rng = np.random.default_rng(0)
    multiples = np.linspace(-1, 1, levels)[rng.integers(0, levels, (256, columns))]
    matrix = scale * rng.uniform(0.8, 1.2, (256, 1)) * multiples
    named = {MATRIX: matrix, FINAL: np.ones(64)}
    assert judge(named, "F16", "F16") == {}


def test_the_reference_importers_mislabelled_file():
    with open_apr(small.DATA / "qwen2_bf16_tagged_f16.apr") as file:
        assert {problem.tensor for problem in file.problems} == set(file.names)
    with open_apr(small.DATA / "qwen2_bf16_stream.apr") as file:
        assert file.problems == []


def test_it_is_refused_until_it_is_repaired(tmp_path):
    source = small.DATA / "qwen2_bf16_tagged_f16.apr"
    for use in (load_model, lambda path: open_checkpoint(path, strict=True)):
        with pytest.raises(errors.Mislabelled, match=r"is tagged F16 but holds BF16: reads 1\.0"):
            use(source)
    with pytest.raises(errors.Mislabelled, match="--retag writes a repaired file"):
        import_checkpoint(source, tmp_path / "a.apr")
    report = import_checkpoint(source, tmp_path / "a.apr", retag=True)
    assert len(report["retagged"]) == 26
    with open_apr(source) as wrong, open_apr(tmp_path / "a.apr", strict=True) as right:
        assert right.names == wrong.names
        for name in right.names:
            assert right.info(name).dtype == "BF16" and right.raw(name) == wrong.raw(name)
    load_model(tmp_path / "a.apr")
    with pytest.raises(errors.UnknownFormat, match="already, with nothing to mend"):
        import_checkpoint(tmp_path / "a.apr", tmp_path / "b.apr", retag=True)


def test_a_folder_tagged_bfloat16_that_holds_float16(tmp_path):
    true = {name: array.astype(np.float16) for name, array in ggufs.values(ggufs.CONFIG).items()}
    tagged = {name: array.view(ml_dtypes.bfloat16) for name, array in true.items()}
    folder = small.hf_folder(tmp_path / "hf", tagged, model=ggufs.CONFIG)
    with pytest.raises(errors.Mislabelled, match=r"tagged BF16 but holds F16: .*--retag"):
        import_checkpoint(folder, tmp_path / "a.apr")
    assert not (tmp_path / "a.apr").exists()
    report = import_checkpoint(folder, tmp_path / "a.apr", retag=True)
    assert report["retagged"].keys() == true.keys()
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert all(np.array_equal(file.read(name), array) for name, array in true.items())


def test_a_repaired_file_keeps_what_else_its_metadata_says(tmp_path):
    values = {
        name: array.astype(ml_dtypes.bfloat16).view(np.float16)
        for name, array in ggufs.values(ggufs.CONFIG).items()
    }
    metadata = ggufs.CONFIG.to_apr() | {"license": "apache-2.0", "tokenizer.vocabulary": ["a"]}
    write_apr(tmp_path / "a.apr", values, metadata)
    import_checkpoint(tmp_path / "a.apr", tmp_path / "b.apr", retag=True)
    with open_apr(tmp_path / "b.apr") as file:
        assert file.metadata["license"] == "apache-2.0"
        assert file.metadata["tokenizer.vocabulary"] == ["a"]
