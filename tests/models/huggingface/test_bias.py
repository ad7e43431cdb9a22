"""A bias by distance rides in queries and keys."""

import pytest
import torch

from attnserve.models.huggingface.bias import RelativeBias, depends_on_distance, take_biases
from tests.models.huggingface import zoo


def test_scores_have_the_bias_in_them() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(9, 4, 8, generator=generator), torch.randn(9, 2, 8, generator=generator)
    by_distance = torch.randn(2 * 6 - 1, 4, generator=generator)
    # Two sequences, of five steps and of four.
    positions = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    long_query, long_key = RelativeBias(by_distance).lengthen(query, key, positions, 0.5)
    assert (long_query.shape, long_key.shape) == ((9, 4, 14), (9, 2, 14))
    found = 0.5 * torch.einsum("qhe,khe->hqk", long_query, long_key.repeat_interleave(2, dim=1))
    expected = 0.5 * torch.einsum("qhe,khe->hqk", query, key.repeat_interleave(2, dim=1))
    distance = positions[None, :] - positions[:, None]
    torch.testing.assert_close(found, expected + by_distance[distance + 5].permute(2, 0, 1))


def test_it_is_the_bias_that_t5_computes() -> None:
    model = zoo.make("T5ForTokenClassification")
    modules = [block.layer[0].SelfAttention for block in model.transformer.encoder.block]
    expected = modules[0].compute_bias(300, 300)[0]
    first, second = take_biases(modules, 300)
    assert first is second
    steps = torch.arange(300)
    found = first.by_distance[steps[None, :] - steps[:, None] + first.num_steps - 1].permute(2, 0, 1)
    assert torch.equal(found, expected)
    # Nothing is left to be computed for all rows of a batch with all others.
    assert modules[0].compute_bias(2000, 2000).numel() == 1


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        (torch.arange(4)[:, None] - torch.arange(4), True),
        (torch.arange(4)[:, None] * torch.arange(4), False),
    ],
    ids=["distance", "steps"],
)
def test_what_depends_on_steps_is_told_from_what_depends_on_distance(bias: torch.Tensor, expected: bool) -> None:
    assert depends_on_distance(bias.float().expand(1, 2, *bias.shape)) is expected
