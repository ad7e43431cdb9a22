import math

import pytest
import torch

from attnserve.models.attention import dot_product_attention, dot_product_weights

EVERYTHING = torch.ones(2, 3, dtype=torch.bool)


def test_weights_are_the_softmax_of_the_scores() -> None:
    scores = torch.tensor([[0.0, 1.0, -2.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    total = 1 + math.e + math.exp(-2)
    expected = torch.tensor([[1 / total, math.e / total, math.exp(-2) / total], [1 / 3] * 3], dtype=torch.float64)
    torch.testing.assert_close(dot_product_weights(scores, EVERYTHING), expected, rtol=0, atol=1e-15)


def test_weights_are_over_the_allowed_keys_alone() -> None:
    scores = torch.tensor([[0.0, 1.0, 50.0], [9.0, 0.0, 0.0]], dtype=torch.float64)
    allowed = torch.tensor([[True, True, False], [False, True, True]])
    total = 1 + math.e
    expected = torch.tensor([[1 / total, math.e / total, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(dot_product_weights(scores, allowed), expected, rtol=0, atol=1e-15)


def test_masked_keys_lose_against_the_lowest_scores() -> None:
    # A fill of -1e4, as is common, would take all the weight here and then lose it to the mask.
    scores = torch.tensor([[-5e4, -5e4, 0.0]])
    weights = dot_product_weights(scores, torch.tensor([[True, True, False]]))
    assert torch.equal(weights, torch.tensor([[0.5, 0.5, 0.0]]))


def test_all_zero_scores_are_uniform() -> None:
    assert torch.equal(
        dot_product_weights(torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool)), torch.full((2, 4), 0.25)
    )


def test_an_epsilon_has_no_meaning() -> None:
    with pytest.raises(ValueError, match=r"^epsilon: dot-product attention has none; expected 0, got 0\.1$"):
        dot_product_weights(torch.zeros(2, 3), EVERYTHING, epsilon=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_scores_do_not_overflow(dtype: torch.dtype) -> None:
    scores = torch.tensor([[6e4, -6e4, 0.0], [-6e4, -6e4, -6e4]], dtype=dtype)
    weights = dot_product_weights(scores, EVERYTHING)
    expected = torch.tensor([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=dtype)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, expected)


def test_a_sign_flip_of_keys_changes_everything() -> None:
    query, key, value = torch.randn(3, 5, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slots = torch.arange(5)[None]
    plain, flipped = (
        dot_product_attention(query, sign * key, value, slots, causal=False, scale=0.5) for sign in (1, -1)
    )
    assert ((plain - flipped).abs() > 1e-3).any(-1).all()
