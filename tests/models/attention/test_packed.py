import pytest
import torch

from attnserve.models.attention.packed import mean_steps

SLOTS = torch.tensor([[0, 1, 2], [3, 6, 6], [4, 5, 6]])


def rows_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_the_mean_is_over_the_steps_there_are() -> None:
    rows = rows_of(torch.float64)
    expected = torch.stack([rows[:3].sum(0) / 3, rows[3], (rows[4] + rows[5]) / 2])
    torch.testing.assert_close(mean_steps(rows, SLOTS), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_mean_keeps_its_type_and_does_not_overflow(dtype: torch.dtype) -> None:
    rows = torch.full((4096, 1), 100.0, dtype=dtype)
    mean = mean_steps(rows, torch.arange(4096)[None])
    assert mean.dtype == dtype
    # Added up in half precision, this would be infinite or stop growing.
    assert mean.item() == 100


def test_the_mean_is_differentiable() -> None:
    rows = rows_of(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mean_steps(x, SLOTS), (rows,))
