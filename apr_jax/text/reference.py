"""Byte-pair merging in plain Python: what `merges.py` must equal, and the path for odd files."""

import itertools
from collections.abc import Mapping, Sequence


def merge(ids: Sequence[int], merges: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Merge the pair of lowest rank, the leftmost of equals, until none is left.

    Args:
      ids: the ids to start from.
      merges: from (left id, right id) to (rank, id of the merged token).
    """
    ids = list(ids)
    while True:
        ranked = [
            (merges[pair][0], index)
            for index, pair in enumerate(itertools.pairwise(ids))
            if pair in merges
        ]
        if not ranked:
            return ids
        _, index = min(ranked)
        ids[index : index + 2] = [merges[ids[index], ids[index + 1]][1]]
