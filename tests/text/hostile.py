"""Texts that tokenizers get wrong."""

import random

from hypothesis import strategies as st

FRAGMENTS = [
    *"aZz09_'.,(){}#\"\\/<>|$^~!?",
    *" \t\n\r\v\f\0\x01\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad\u200b\u2028\u2029",
    *"éß\u017føµ\u0131İªºñ¡¿½²³①௧٣߁",
    *"\u0300\u0301\u0323\u0334\u0338\u0345\u05b0\u0e38\u3099\u0898\u1abf\U0001e4ec",
    *"\u212a\u212b\u2126\u037e\u1fef\u0958\u2adc\u226e\uac00\u1100\u1161\u11a8\U00011935\U00011930",
    *"日本語かがパ한국어कि्षไทยעבריתعربي",
    *"🦙👩\u200d💻🏽\ufe0f\U0001f1e9\U0001f1ea",
    *"\u1c89\U0001ccd6\U00010d4a\U0001e030\ue000\ufffd\uffff\U0010ffff",
    *[
        "'s",
        "'S",
        "'\u017f",
        "'LL",
        "'ve",
        "'rE",
        "'",
        "''d",
        "ing",
        " the",
        "def ",
        "self.",
        "0x1F",
    ],
    *["    ", "        ", "\t\t", "\r\n", "\r\n\r\n", "\n\n\n", "  \n  ", " \n", "######", "===="],
    *["<|endoftext|>", "<|im_start|>", "<tool_call>", "</tool_call>", "<|fim_pad|>", "</s>", "<s>"],
    *["<|endoftext", "|>", "<|", "<unk>", "<pad>", "<|endoftext|>\u0338", "<|im_end|><|im_end|>"],
]

# Anything but surrogates, often from the fragments.
texts = st.lists(
    st.one_of(
        st.sampled_from(FRAGMENTS),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        st.tuples(st.sampled_from(FRAGMENTS), st.integers(2, 40)).map(lambda t: t[0] * t[1]),
    ),
    max_size=24,
).map("".join)


def random_texts(seed: int, count: int) -> list[str]:
    """Texts of up to sixty fragments and random characters."""
    rng = random.Random(seed)
    return [
        "".join(
            rng.choice(FRAGMENTS) if rng.random() < 0.8 else _character(rng)
            for _ in range(rng.randrange(60))
        )
        for _ in range(count)
    ]


def _character(rng: random.Random) -> str:
    point = rng.randrange(rng.choice([0x80, 0x800, 0x3000, 0xD800, 0x110000]))
    return chr(point) if not 0xD800 <= point < 0xE000 else "\ud7ff"
