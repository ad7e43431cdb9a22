import pytest
import torch
from torch import Tensor

from attnserve.models.attention import dot_product_attention, elliptical_attention, elliptical_metric

STEPS = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]], dtype=torch.float64)[:, None]
"""|v - v_previous| of three steps, one head, two channels."""
SLOTS = torch.tensor([[0, 1, 2]])


def metric(scope: str, scaling: str, change: Tensor = STEPS) -> list[list[float]]:
    previous = torch.full_like(change, 2.0)
    return elliptical_metric(previous - change, previous, SLOTS, scope=scope, scaling=scaling)[:, 0].tolist()


def test_a_metric_by_hand() -> None:
    # Sums: (1, 0), (1, 3), (2, 4).
    assert metric("prefix", "max") == [[1, 0], [1 / 3, 1], [0.5, 1]]
    assert metric("prefix", "mean") == [[2, 0], [0.5, 1.5], [2 / 3, 4 / 3]]
    for scope in ("sequence", "sequence-leaky"):
        assert metric(scope, "max") == [[0.5, 1]] * 3
        assert metric(scope, "mean") == [[2 / 3, 4 / 3]] * 3


@pytest.mark.parametrize("scaling", ["max", "mean"])
def test_nothing_changed_leaves_the_query_as_it_is(scaling: str) -> None:
    change = STEPS.clone()
    change[:2] = 0
    assert metric("prefix", scaling, change)[:2] == [[1, 1], [1, 1]]
    assert metric("sequence", scaling, 0 * change) == [[1, 1]] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scope", ["prefix", "sequence"])
def test_long_sums_do_not_overflow_half_precision(dtype: torch.dtype, scope: str) -> None:
    # 4000 changes of about 100: past 65504, and past the 256 terms after which a bfloat16 sum stands still.
    random = torch.Generator().manual_seed(0)
    value = (100 * torch.rand(4000, 1, 4, generator=random)).to(dtype)
    previous = torch.zeros_like(value)
    slots = torch.arange(4000)[None]
    narrow = elliptical_metric(value, previous, slots, scope=scope, scaling="max")
    wide = elliptical_metric(value.double(), previous.double(), slots, scope=scope, scaling="max")
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_attention_is_dot_product_attention_of_stretched_queries(num_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    num_key_heads = min(num_heads, 2)
    query = torch.randn(5, num_heads, 4, generator=generator)
    key, value, previous = torch.randn(3, 5, num_key_heads, 4, generator=generator)
    slots = torch.tensor([[0, 1, 2], [3, 4, 5]])
    stretch = elliptical_metric(value, previous, slots, scope="prefix", scaling="mean")
    query_of_group = query * stretch.repeat_interleave(num_heads // num_key_heads, dim=1)
    expected = dot_product_attention(query_of_group, key, value, slots, causal=True, scale=0.5, window=2)
    # Without a scale it is 1 / sqrt(4), the same.
    for scale in (None, 0.5):
        output = elliptical_attention(
            query, key, value, previous, slots, causal=True, scope="prefix", scaling="mean", scale=scale, window=2
        )
        assert torch.equal(output, expected)
    assert not torch.allclose(
        dot_product_attention(query, key, value, slots, causal=True, scale=0.5, window=2), expected, atol=1e-3
    )


@pytest.mark.parametrize(
    ("causal", "scope", "scaling", "message"),
    [
        (True, "sequence", "max", "^scope: 'sequence' lets a causal model see its own targets"),
        (False, "prefix", "max", "^scope: a bidirectional model sees the whole sequence"),
        (False, "sequence-leaky", "max", "^scope: a bidirectional model sees the whole sequence"),
        (True, "batch", "max", "^scope: expected one of sequence, prefix, sequence-leaky, got 'batch'$"),
        (True, "prefix", "median", "^scaling: expected one of max, mean, got 'median'$"),
    ],
)
def test_what_leaks_or_means_nothing_is_refused(causal: bool, scope: str, scaling: str, message: str) -> None:
    rows = torch.ones(3, 1, 2)
    with pytest.raises(ValueError, match=message):
        elliptical_attention(rows, rows, rows, rows, SLOTS, causal=causal, scope=scope, scaling=scaling)


def test_the_metric_alone_refuses_the_same_words() -> None:
    rows = torch.ones(3, 1, 2)
    with pytest.raises(ValueError, match=r"^scope: expected one of"):
        elliptical_metric(rows, rows, SLOTS, scope="batch", scaling="max")
    with pytest.raises(ValueError, match=r"^scaling: expected one of"):
        elliptical_metric(rows, rows, SLOTS, scope="prefix", scaling="median")
