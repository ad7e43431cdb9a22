"""What holds for every metric: its value, what it does not depend on, and that no gradient passes through it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from attnserve.models import Attention, AttentionConfig
from attnserve.models.attention import VARIANTS, Variant, elliptical_metric
from attnserve.models.attention.packed import attend
from tests.conformance import reference
from tests.conformance.cases import MetricCase, attention_case, layer_options, metric_cases, segments_of

every_case = pytest.mark.parametrize("case", metric_cases(), ids=lambda case: case.name)


def run(case: MetricCase, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
    value, previous = (change(torch.from_numpy(array)) for array in (case.value, case.previous_value))
    return elliptical_metric(value, previous, torch.from_numpy(case.slots), scope=case.scope, scaling=case.scaling)


@every_case
def test_metrics_agree_with_a_reference_that_knows_no_packing(case: MetricCase) -> None:
    np.testing.assert_allclose(run(case).numpy(), reference.metric(case), rtol=0, atol=1e-12)


@every_case
def test_the_size_of_the_values_cancels(case: MetricCase) -> None:
    # The paper divides every change by a delta. A power of two divides exactly, so there equality is exact too.
    metric = run(case)
    assert torch.equal(run(case, lambda tensor: tensor / 4), metric)
    torch.testing.assert_close(run(case, lambda tensor: tensor * 5), metric, rtol=0, atol=1e-12)
    assert torch.equal(run(case, torch.neg), metric)


@every_case
def test_channels_of_a_head_are_normalised_together(case: MetricCase) -> None:
    metric = run(case)
    assert (metric >= 0).all()
    norm = metric.amax(-1) if case.scaling == "max" else metric.mean(-1)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=1e-12)


@every_case
def test_sequences_do_not_bend_each_other_s_metric(case: MetricCase) -> None:
    metric = run(case)
    for segment, length in zip(segments_of(case.lengths), case.lengths, strict=True):
        value, previous = (torch.from_numpy(array[segment]) for array in (case.value, case.previous_value))
        alone = elliptical_metric(value, previous, torch.arange(length)[None], scope=case.scope, scaling=case.scaling)
        torch.testing.assert_close(metric[segment], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "variant", [variant for variant in VARIANTS.values() if variant.metric_op], ids=lambda variant: variant.name
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_no_gradient_passes_through_a_metric(variant: Variant, causal: bool) -> None:
    case = attention_case("metric gradient", (4, 2), causal=causal)
    query, key, value, previous = (
        torch.from_numpy(array).requires_grad_()
        for array in (case.query, case.key, case.value, case.value[::-1].copy())
    )
    slots = torch.from_numpy(case.slots)
    for options in layer_options(variant.name, causal=causal):
        attention = Attention(AttentionConfig(variant=variant.name, **options), head_size=4, causal=causal)
        assert attention.measure is not None
        metric = attention.measure(value, previous, slots)
        assert not metric.requires_grad
        output = attention(query, key, value, slots, previous_value=previous)
        held = attend(variant.weigh, query * metric, key, value, slots, causal=causal, scale=attention.scale)
        inputs = (query, key, value, previous)
        gradients = torch.autograd.grad(output.square().sum(), inputs, allow_unused=True)
        expected = torch.autograd.grad(held.square().sum(), inputs, allow_unused=True)
        assert gradients[3] is None
        assert all(torch.equal(*pair) for pair in zip(gradients[:3], expected[:3], strict=True))
