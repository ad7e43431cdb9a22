import numpy as np
import pytest
import torch

from attnserve.models.attention import expressive_attention, expressive_weights

Z = np.array([[0.5, -0.3, 2.0], [1e-3, 4.0, -1e3]])
EVERYTHING = torch.ones(2, 3, dtype=torch.bool)


def similarity(z: np.ndarray) -> np.ndarray:
    return z**2 / (1 + z**2)


@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_weights_are_the_formula(epsilon: float) -> None:
    u = similarity(Z)
    expected = u / (epsilon + u.sum(-1, keepdims=True))
    weights = expressive_weights(torch.from_numpy(Z), EVERYTHING, epsilon=epsilon)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-14, atol=0)


def test_weights_are_the_softmax_of_their_logarithmic_form() -> None:
    logarithms = 2 * np.log(abs(Z)) - np.log1p(Z**2)
    expected = torch.softmax(torch.from_numpy(logarithms), dim=-1)
    torch.testing.assert_close(expressive_weights(torch.from_numpy(Z), EVERYTHING), expected, rtol=1e-12, atol=0)


def test_weights_are_over_the_allowed_keys_alone() -> None:
    # The masked key has the largest score: a large negative fill before the square would give it the largest weight.
    z = torch.tensor([[0.5, 0.3, 9.0]], dtype=torch.float64)
    weights = expressive_weights(z, torch.tensor([[True, True, False]])).numpy()
    u = similarity(np.array([0.5, 0.3]))
    np.testing.assert_allclose(weights, [[*(u / u.sum()), 0]], rtol=1e-14, atol=0)


def test_a_row_of_zeros_weighs_nothing_and_has_no_gradient() -> None:
    z = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    weights = expressive_weights(z, EVERYTHING)
    assert torch.equal(weights[0], torch.zeros(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(weights[:, 1].sum(), z)
    assert torch.equal(gradient[0], torch.zeros(3, dtype=torch.float64))
    assert gradient[1].isfinite().all()
    assert gradient[1, 1] > 0


def test_a_lone_key_has_all_the_weight_however_small_its_score() -> None:
    z = torch.tensor([[1e-15, 5.0], [-7.0, 0.0]])
    allowed = torch.tensor([[True, False], [True, False]])
    assert torch.equal(expressive_weights(z, allowed), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "row",
    [
        [300.0, -300.0, 150.0],
        [1e-5, -2e-5, 3e-5],
        [300.0, 1e-5, -1e-5],
        [1e-5, 1e-5, 0.0],
        [60000.0, 1.0, 1e-5],
    ],
    ids=str,
)
def test_scores_out_of_the_range_of_half_precision_squares(dtype: torch.dtype, row: list[float]) -> None:
    # Squared in float16, 300 is infinite and 1e-5 is 0.
    z = torch.tensor([row], dtype=dtype)
    weights = expressive_weights(z, torch.ones(1, 3, dtype=torch.bool))
    u = similarity(z.double().numpy())
    assert weights.dtype == dtype
    rounding = torch.finfo(dtype).eps
    np.testing.assert_allclose(
        weights.double().numpy(), u / u.sum(), rtol=rounding, atol=float(torch.finfo(dtype).smallest_normal) * rounding
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_whose_square_overflows(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    z = torch.tensor([[largest, -largest, 0.0]], dtype=dtype, requires_grad=True)
    weights = expressive_weights(z, torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(weights, torch.tensor([[0.5, 0.5, 0.0]], dtype=dtype))
    (gradient,) = torch.autograd.grad(weights[0, 0], z)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gain", [1e-5, 300.0])
def test_attention_in_half_precision_agrees_with_float64(dtype: torch.dtype, gain: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 6, 2, 8, generator=generator, dtype=torch.float64)
    slots = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 6]])
    rows = [tensor.to(dtype) for tensor in (gain * query, key, value)]
    narrow = expressive_attention(*rows, slots, causal=True, scale=1.0)
    wide = expressive_attention(*(tensor.double() for tensor in rows), slots, causal=True, scale=1.0)
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_a_sign_flip_of_keys_changes_nothing() -> None:
    query, key, value = torch.randn(3, 5, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slots = torch.arange(5)[None]
    plain, flipped = (
        expressive_attention(query, sign * key, value, slots, causal=False, scale=0.5) for sign in (1, -1)
    )
    assert torch.equal(plain, flipped)


def test_small_scores_are_sharp_and_large_ones_flat() -> None:
    # The reverse of a softmax: only the ratio of small scores counts, and large ones all weigh the same.
    small, tiny = (expressive_weights(torch.tensor([[1.0, 3.0]]) * size, EVERYTHING[:1, :2]) for size in (1e-3, 1e-6))
    torch.testing.assert_close(small, torch.tensor([[0.1, 0.9]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(tiny, torch.tensor([[0.1, 0.9]]), rtol=0, atol=1e-6)
    large = expressive_weights(torch.tensor([[1e3, 3e3]]), EVERYTHING[:1, :2])
    torch.testing.assert_close(large, torch.tensor([[0.5, 0.5]]), rtol=0, atol=1e-5)
