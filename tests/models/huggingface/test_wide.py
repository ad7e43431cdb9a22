"""Where a model says float32, a truth in float64 reads float64."""

import torch
from torch.nn import functional

from attnserve.models.huggingface.wide import widened
from tests.models.huggingface import zoo


def test_float32_is_float64_inside_and_float32_outside() -> None:
    x = torch.tensor([1.0, 3.0], dtype=torch.float64) / 3
    with widened():
        asked = [
            x.to(torch.float32),
            x.to(dtype=torch.float32),
            x.float(),
            functional.softmax(x, dim=-1, dtype=torch.float32),
            torch.arange(3, dtype=torch.float32),
        ]
    assert {one.dtype for one in asked} == {torch.float64}
    assert torch.equal(asked[0], x)
    assert x.to(torch.float32).dtype == torch.float32


def test_a_model_in_float64_has_no_rounding_of_float32_left() -> None:
    model = zoo.make("LlamaForCausalLM").double()
    norm = model.model.norm
    x = torch.randn(1, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    assert not torch.allclose(norm(x), exact, rtol=0, atol=1e-12)
    with widened():
        torch.testing.assert_close(norm(x), exact, rtol=0, atol=1e-12)
