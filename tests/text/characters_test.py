"""Character classes and NFC against HuggingFace `tokenizers`, over all code points."""

import pathlib
import random
import unicodedata

from hypothesis import given, settings
from tokenizers import normalizers

from apr_jax.text import characters, unicode_tables
from apr_jax.text.characters import LONG_S, OTHER, fold, nfc
from tests.text import probe_unicode
from tests.text.hostile import texts

HF_NFC = normalizers.NFC().normalize_str


def test_the_tables_are_those_of_the_installed_tokenizers():
    committed = pathlib.Path(unicode_tables.__file__).read_text(encoding="utf-8")
    assert committed == probe_unicode.source()


def test_fold_gives_one_character_of_the_same_class_for_each():
    text = "".join(probe_unicode.CHARACTERS)
    folded = fold(text)
    assert len(folded) == len(text)
    assert max(folded) <= "\xff"
    assert folded[:128] == text[:128]
    assert [text[i] for i, c in enumerate(folded) if c == LONG_S] == ["\u017f"]
    assert fold("\U0010ffff\x85 a\u1c89") == f"{OTHER}\xa0 a\xe9"


def test_nfc_of_every_character_alone_and_between_others():
    for template in ("{}", "\u1100{}\u0334e{}\u0301"):
        for start in range(0, len(probe_unicode.CHARACTERS), 1 << 17):
            characters = probe_unicode.CHARACTERS[start : start + (1 << 17)]
            text = "\n".join(template.replace("{}", c) for c in characters)
            assert nfc(text) == HF_NFC(text)


def test_characters_that_stay_among_their_like_do_so_in_any_order():
    kinds = characters._nfc_kinds()
    stay = [c for c in probe_unicode.CHARACTERS if kinds[ord(c)] == 0]
    composed = [c for c in stay if unicodedata.normalize("NFD", c) != c]
    assert len(composed) > 10_000
    for pool in (stay, composed * 20):
        random.Random(0).shuffle(pool)
        text = "".join(pool)
        assert HF_NFC(text) == text == nfc(text)


def test_nfc_of_every_decomposition():
    decomposed = {unicodedata.normalize("NFD", c): c for c in probe_unicode.CHARACTERS}
    for text, character in decomposed.items():
        if text != character:
            assert nfc(text) == HF_NFC(text), ascii(text)
            assert nfc(f"e{text}\u0301") == HF_NFC(f"e{text}\u0301"), ascii(text)


def test_nfc_of_random_marks_and_decompositions():
    rng = random.Random(0)
    marks = [c for c in probe_unicode.CHARACTERS if unicodedata.combining(c)]
    composites = [c for c in probe_unicode.CHARACTERS if unicodedata.normalize("NFD", c) != c]
    parts = sorted({part for c in composites for part in unicodedata.normalize("NFD", c)})
    for _ in range(50_000):
        pool = rng.choice([marks, composites, parts])
        text = "".join(rng.choice(rng.choice([pool, parts])) for _ in range(rng.randrange(1, 9)))
        assert nfc(text) == HF_NFC(text), ascii(text)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_nfc_of_hostile_texts(text):
    assert nfc(text) == HF_NFC(text)
