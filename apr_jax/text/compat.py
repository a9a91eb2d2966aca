"""The ids that aprender wrote from its pull request 1598 on, to check corpora of that time.

They are not the model's ids. That encoder began a new word at every whitespace character and
nowhere else, skipped the normal form, and separated documents by `</s>` wherever the vocabulary
had an entry of that spelling, which in Qwen's is an ordinary piece of text.
"""

import dataclasses

import numpy as np

from apr_jax.text.vocabulary import TokenizerError, Vocabulary

NAME = "aprender-1598"
WARNING = (
    f"compat={NAME}: these are not the model's ids: text is cut at whitespace only, as aprender "
    "did after its pull request 1598; compare old corpora with them, and train on nothing else"
)
_EOS = (b"</s>", b"<|endoftext|>", b"<eos>", b"<|eos|>")


def as_aprender(vocabulary: Vocabulary, source: object) -> Vocabulary:
    """The vocabulary with the rules of that encoder.

    Of the added tokens it knew those that are special; the others were cut as text. From a
    vocab.json and merges.txt without tokenizer.json it lost every merge whose line begins with #,
    taking it for a comment.

    Raises:
      TokenizerError: the vocabulary is of a format that it did not encode so.
    """
    if vocabulary.format not in ("byte-level", "tokenizer.json"):
        raise TokenizerError(
            f"{source}: is a {vocabulary.format} tokenizer; compat={NAME} is about byte-level ones"
        )
    merges_M3 = vocabulary.merges_M3
    if vocabulary.format == "byte-level":
        kept = [not vocabulary.tokens[left].startswith(b"#") for left in merges_M3[:, 0].tolist()]
        merges_M3 = merges_M3[np.array(kept, bool)]
    added = tuple(token for token in vocabulary.added if token.special)
    ids = {text: id_ for id_, text in vocabulary.tokens.items()}
    ids |= {token.content.encode(): token.id for token in added}
    return dataclasses.replace(
        vocabulary,
        merges_M3=merges_M3,
        added=added,
        normalization="none",
        pretokenizer="whitespace",
        eos_id=next((ids[name] for name in _EOS if name in ids), None),
    )
