"""Rows: what they may see, and whose queries and keys they are of."""

from typing import Any

import numpy as np
import pytest

from attnserve.rows import cut_rows, keys_by_head, queries_by_head, rows_per_block, visible_keys
from tests.service.conftest import make_layer


@pytest.mark.parametrize(
    ("fields", "first", "last"),
    [
        ({}, [0, 0, 0], [0, 3, 6]),
        ({"causal": False}, [0, 0, 0], [6, 6, 6]),
        ({"window": 3}, [0, 1, 4], [0, 3, 6]),
        ({"causal": False, "window": 3}, [0, 1, 4], [2, 5, 6]),
        ({"window": 1}, [0, 3, 6], [0, 3, 6]),
    ],
    ids=str,
)
def test_what_rows_may_see(fields: dict[str, Any], first: list[int], last: list[int]) -> None:
    found = visible_keys(make_layer(0, **fields), np.array([0, 3, 6]), 7)
    assert [array.tolist() for array in found] == [first, last]


def test_blocks_have_the_keys_that_one_of_their_rows_may_see() -> None:
    first, last = visible_keys(make_layer(0, window=3), np.array([6, 0, 4, 9, 5]), 10)
    assert list(cut_rows(first, last, 2)) == [
        (slice(0, 2), slice(0, 7)),
        (slice(2, 4), slice(2, 10)),
        (slice(4, 5), slice(3, 6)),
    ]
    assert list(cut_rows(first[:0], last[:0], 2)) == []


@pytest.mark.parametrize(
    ("num_numbers", "expected"), [(1, 1 << 18), (8 * 512, 64), (8 * 4096, 32), (1 << 17, 16), (1 << 22, 1)]
)
def test_blocks_fit_the_cache_unless_their_rows_would_be_few(num_numbers: int, expected: int) -> None:
    assert rows_per_block(num_numbers) == expected


def test_query_heads_read_the_key_heads_of_their_groups() -> None:
    layer = make_layer(0, num_heads=4, num_key_heads=2)
    rows = np.arange(3 * 4 * 2, dtype=np.float16).reshape(3, 4, 2)
    queries, keys = queries_by_head(rows, [3, 0]), keys_by_head(layer, rows[:, :2], [3, 0])
    assert np.array_equal(queries, rows[:, [3, 0]].swapaxes(0, 1))
    assert np.array_equal(keys, rows[:, [1, 0]].swapaxes(0, 1))
    for array in (queries, keys):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_heads_that_are_laid_out_so_are_not_copied() -> None:
    rows = np.zeros((2, 5, 4), np.float32).transpose(1, 0, 2)
    assert np.shares_memory(queries_by_head(rows, [0, 1]), rows)
    assert np.shares_memory(keys_by_head(make_layer(0, num_heads=2, num_key_heads=2), rows, [0, 1]), rows)
    assert not np.shares_memory(queries_by_head(rows, [1, 0]), rows)
    assert not np.shares_memory(queries_by_head(rows, [0]), rows)
