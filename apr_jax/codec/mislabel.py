"""Is a tensor tagged F16 really BF16, or the other way round? Its 16-bit words tell.

F16 has 5 exponent bits where BF16 has 8. Reading BF16 as F16 divides every log-magnitude by eight
and lands all of [2^-23, 512) in [0.25, 4); reading F16 as BF16 multiplies by eight. Numbers that
scatter around zero, as matrices and biases do, give that away at any scale: their quartiles lie one
to three octaves apart. The weights of a norm do not scatter around zero, so most readings of them
are possible ones: only the impossible are decided alone, the others with the tensors of their tag.
"""

import dataclasses
import math
import os
from collections.abc import Buffer, Callable, Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from apr_jax.codec.errors import AprError, Mislabelled

TAGS = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
OTHER = {"F16": "BF16", "BF16": "F16"}

_SAMPLE, _PIECES = 1 << 14, 16
_FEW = 16
"""Below so many values that are not zero, nothing is said."""
_ENOUGH = 64
"""From so many values on, a tensor that scatters around zero is decided alone."""
_F16_IMAGE, _F16_SHARE = (0.25, 4.0), 0.999
_F16_IMAGE_OF_ONE = (1.82, 1.91)
"""What BF16 numbers from 0.75 to 1.3 are when they are read as F16."""
_F16_OCTAVES = 0.75
"""Of a uniform distribution the quartiles are 1.58 octaves apart, of others more."""
_LEVELS, _MOST_LEVELS = 8, 512
"""Fewer magnitudes are those of F16's smallest numbers, or of weights with few values by design."""
_BF16_OCTAVES = 8.0
"""Quartiles of a true tensor are this far apart only if q3/q1 is 256."""
_BF16_EMBEDDING, _BF16_ANY, _BF16_NORM = 1e-12, 1e-30, (1e-6, 1e3)
_BF16_SMALL_NORM = 0.05
"""The first norms of sound models can be smaller; their last, or most of them, are not."""
_INFINITE = float(np.finfo(np.float64).max)


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """What the words of one tensor say of its tag: wrong, right or, with None, nothing sure.

    `why` says what speaks against the tag.
    """

    wrong: bool | None
    why: str = ""


class _Sample:
    """The words of one tensor that are not zeros: all, or of a large one pieces from everywhere.

    Without their sign, words of either type are in the order of what they stand for, so one sort
    serves for both.

    Attributes:
      words: uint16 [n].
      ranked: uint16 [n], without signs, ascending.
    """

    def __init__(self, words: np.ndarray) -> None:
        if words.size > _SAMPLE:
            size = _SAMPLE // _PIECES
            starts = np.linspace(0, words.size - size, _PIECES).astype(int)
            words = np.concatenate([words[start : start + size] for start in starts])
        self.words = words[(words & 0x7FFF) != 0]
        self.ranked = np.sort(self.words & 0x7FFF)

    @property
    def size(self) -> int:
        return self.words.size

    def magnitude(self, share: float, tag: str) -> float:
        """What is above this share of the magnitudes; NaN counts as infinity does."""
        word = self.ranked[round(share * (self.size - 1)) :][:1]
        with np.errstate(invalid="ignore"):
            value = float(word.view(TAGS[tag])[0])
        return value if math.isfinite(value) else _INFINITE

    def median(self, tag: str) -> float:
        """The magnitude in the middle."""
        return self.magnitude(0.5, tag)

    def octaves(self, tag: str) -> float:
        """How far apart the quartiles are."""
        return math.log2(self.magnitude(0.75, tag)) - math.log2(self.magnitude(0.25, tag))

    def share_between(self, low: float, high: float) -> float:
        """The share of magnitudes in [low, high), read as F16."""
        limits = np.array([low, high], np.float16).view(np.uint16)
        first, last = np.searchsorted(self.ranked, limits)
        return float(last - first) / self.size

    def is_continuous(self) -> bool:
        """Whether there are nearly as many magnitudes as 8 bits allow for, not a few by design."""
        return self.levels() >= max(_LEVELS, min(self.size // 4, _MOST_LEVELS))

    def levels(self) -> int:
        """How many different magnitudes there are."""
        return 1 + int(np.count_nonzero(self.ranked[1:] != self.ranked[:-1]))

    def has_both_signs(self) -> bool:
        return bool(0.05 < np.count_nonzero(self.words >> 15) / self.size < 0.95)


class Source(Protocol):
    """What is asked of an open file."""

    @property
    def path(self) -> str | os.PathLike[str]: ...

    @property
    def names(self) -> list[str]: ...

    def info(self, name: str, /) -> Any: ...

    def raw(self, name: str, /) -> Buffer: ...


def oddities(source: Source) -> dict[str, Mislabelled]:
    """The tensors of an open file that have a wrong tag, by name."""

    def words(name: str) -> np.ndarray:
        try:
            data = np.frombuffer(source.raw(name), np.uint8)
        except AprError:
            return np.empty(0, np.uint16)  # bytes that are not there are another defect
        return data[: data.size // 2 * 2].view(np.uint16)

    tags = {name: source.info(name).dtype for name in source.names}
    return {
        name: Mislabelled(
            source.path,
            f"is tagged {tags[name]} but holds {OTHER[tags[name]]}: {why}; "
            "import_checkpoint --retag writes a repaired file",
            tensor=name,
        )
        for name, why in mislabelled(tags, words).items()
    }


def mislabelled(tags: Mapping[str, str], read_words: Callable[[str], np.ndarray]) -> dict[str, str]:
    """The tensors with a wrong tag, each with the evidence in words.

    Args:
      tags: "F16" or "BF16" by name; other types may be among them and are passed over.
      read_words: a tensor's words by name, uint16 [n]; a sample of them is looked at.
    """
    found: dict[str, str] = {}
    for tag in TAGS:
        names = [name for name, own in tags.items() if own == tag]
        samples = {name: _Sample(read_words(name)) for name in names}
        verdicts = {name: _judge(name, samples[name], tag) for name in names}
        for name in _convicted(verdicts):
            why = verdicts[name].why or f"as do the others that are tagged {tag}"
            found[name] = f"{_readings(samples[name], tag)}; {why}"
    return found


def is_norm(name: str) -> bool:
    """Whether the tensor is the weight of a norm, which does not scatter around zero."""
    return name.endswith("norm.weight")


def _convicted(verdicts: Mapping[str, _Verdict]) -> list[str]:
    """Those decided alone, and the suspects where nothing sure speaks for their tag."""
    others = [verdict.wrong for name, verdict in verdicts.items() if not is_norm(name)]
    # Writers get a type wrong for a whole file, and what scatters around zero is sure.
    if True in others and False not in others:
        return list(verdicts)
    norms = [name for name in verdicts if is_norm(name)]
    suspects = [name for name in norms if verdicts[name].why]
    if False in others or 2 * len(suspects) <= len(norms):
        suspects = []
    return [name for name, verdict in verdicts.items() if verdict.wrong or name in suspects]


def _judge(name: str, sample: _Sample, tag: str) -> _Verdict:
    if sample.size < _FEW:
        return _Verdict(None)
    enough = sample.size >= _ENOUGH
    if not _plausible(name, sample, OTHER[tag]):
        sure = enough and not is_norm(name) and _plausible(name, sample, tag)
        return _Verdict(False if sure else None)
    octaves = sample.octaves(tag)
    if tag == "BF16" and octaves > _BF16_OCTAVES:
        return _Verdict(True, f"its quartiles are {octaves:.0f} octaves apart")
    if is_norm(name):
        return _judge_norm(sample, tag)
    if tag == "BF16":
        least = _BF16_EMBEDDING if name.endswith("embed_tokens.weight") else _BF16_ANY
        if (median := sample.median(tag)) < least:
            return _Verdict(True, f"no weights are as small as {median:.2g}")
    elif sample.has_both_signs() and sample.is_continuous():
        low, high = _F16_IMAGE
        share = sample.share_between(low, high)
        if share >= _F16_SHARE or octaves < _F16_OCTAVES:
            return _Verdict(
                True if enough else None,
                f"{share:.2%} of it lie in [{low}, {high}), its quartiles {octaves:.2f} octaves "
                "apart, though it scatters around zero",
            )
    return _Verdict(False if enough else None)


def _plausible(name: str, sample: _Sample, tag: str) -> bool:
    """Whether the words can be weights as `tag` has them: random bits are not, by either tag."""
    if sample.magnitude(1, tag) >= _INFINITE:
        return False
    if is_norm(name):
        return sample.octaves(tag) <= _BF16_OCTAVES
    return (
        _F16_OCTAVES <= sample.octaves(tag) <= _BF16_OCTAVES
        and sample.median(tag) >= _BF16_EMBEDDING
    )


def _judge_norm(sample: _Sample, tag: str) -> _Verdict:
    """Norms start at 1 and spread as they learn: what hardly spreads has to be near 1."""
    median, otherwise = sample.median(tag), sample.median(OTHER[tag])
    if np.ptp(sample.words) == 0:
        # Where norms start: by one tag or the other the value is 1 exactly.
        if otherwise == 1:
            return _Verdict(True, "where norms start, at 1")
        return _Verdict(False if median == 1 else None)
    low, high = _BF16_NORM
    if tag == "BF16" and (sample.magnitude(1, tag) > high or median < low):
        return _Verdict(True, "no norm weighs so")
    near_one = 0.75 < median < 1.34
    if near_one or (tag == "F16" and not np.any(sample.words & 7) and sample.levels() >= 8):
        # Three empty bits at the end are what BF16 leaves when it is converted to F16.
        return _Verdict(False)
    spread = (sample.magnitude(0.84, tag) - sample.magnitude(0.16, tag)) / (2 * median)
    low, high = _F16_IMAGE_OF_ONE
    if tag == "F16" and spread < 0.025 and low < median < high:
        return _Verdict(True, f"spreads by {spread:.1%} only, as BF16 numbers around 1 do")
    if tag == "F16" and spread < 0.025 and 0.25 < otherwise < 16:
        return _Verdict(None, f"spreads by {spread:.1%} only, away from 1 where norms start")
    if tag == "BF16" and median < _BF16_SMALL_NORM and 0.75 < otherwise < 1.34:
        return _Verdict(None, "would all but silence what it weighs")
    return _Verdict(None)


def _readings(sample: _Sample, tag: str) -> str:
    if not sample.size:
        return "has no values but zeros"
    own, other = sample.median(tag), sample.median(OTHER[tag])
    return f"reads {own:.4g} in the median as {tag} and {other:.4g} as {OTHER[tag]}"
