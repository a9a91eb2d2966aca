"""The order in which the kernel of dk and dv goes through tiles of queries and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention.grad_kv import _seen, _Walk
from kernels.attention.tiles import Problem


@pytest.mark.parametrize(
    ("first", "turn", "stop", "group"),
    [(0, 2, 5, 3), (1, 1, 4, 2), (2, 5, 5, 7), (3, 4, 9, 1), (0, 0, 6, 8), (4, 4, 4, 2)],
)
def test_tile_after_tile_then_head_after_head(first: int, turn: int, stop: int, group: int) -> None:
    walk = _Walk(*map(jnp.int32, (first, turn, stop)), group)
    found = jax.vmap(walk.__getitem__)(jnp.arange(walk.count))
    heads = range(group)
    by_tile = [(head, tile) for tile in range(first, turn) for head in heads]
    by_head = [(head, tile) for head in heads for tile in range(turn, stop)]
    assert list(zip(*map(np.ndarray.tolist, map(np.asarray, found)), strict=True)) == [
        *by_tile,
        *by_head,
    ]


@pytest.mark.parametrize("row", [0, 64, 192, 256])
def test_what_needs_a_mask_comes_before_the_turn(row: int) -> None:
    """Of each warpgroup, in the walk of a block of two."""
    queries, tile, group = 500, 64, 3
    problem = Problem(causal=True, scale=1.0, keys=queries)
    block = _seen(jnp.int32(row), 128, queries, tile, problem, None, None)
    walk = _Walk(block.first, block.diagonal, block.stop, group)
    for first_key in (row, row + 64):
        own = _seen(jnp.int32(first_key), 64, queries, tile, problem, None, None)
        (begin, masked, hidden), (plain, end, unhidden) = own.phases(walk)
        assert masked == plain and end == walk.count and hidden and unhidden is None
        tiles = [int(walk[jnp.int32(step)][1]) for step in range(begin, int(walk.count))]
        assert all((t + 1) * tile > first_key for t in tiles)
        # Without a mask a tile's first query sees the last key.
        assert all(t * tile >= first_key + 63 for t in tiles[int(plain - begin) :])
        seen = {t for t in range(-(-queries // tile)) if (t + 1) * tile > first_key}
        assert sorted(tiles) == sorted([*seen] * group)
