"""What holds for every variant, op by op over the case grid.

Metrics: test_metric_laws.py. Through whole models: test_model_laws.py.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from attnserve.models import Attention, AttentionConfig
from attnserve.models.attention import VARIANTS, Variant
from attnserve.models.attention.packed import allowed_keys, attend, attention_scores, gather_steps
from tests.conformance import reference
from tests.conformance.cases import (
    Array,
    AttentionCase,
    MetricCase,
    attention_case,
    attention_cases,
    layer_options,
    segments_of,
)

# Variants that share a weighting differ in their metric alone, and that is in the query before the weighting sees it.
# So laws of weights run once per weighting, laws of layers for every variant and every choice of its options.
WEIGHTED = {variant.weighting: variant for variant in reversed(VARIANTS.values())}

every_weighting = pytest.mark.parametrize("variant", WEIGHTED.values(), ids=WEIGHTED.keys())
every_case = pytest.mark.parametrize(
    ("variant", "case"),
    [
        pytest.param(variant, case, id=f"{weighting}: {case.name}")
        for weighting, variant in WEIGHTED.items()
        for case in attention_cases(weighting)
    ],
)
every_layer = pytest.mark.parametrize(
    ("variant", "options", "case"),
    [
        pytest.param(variant, options, case, id=f"{' '.join((name, *options.values()))}: {case.name}")
        for name, variant in VARIANTS.items()
        for case in attention_cases(variant.weighting)
        for options in layer_options(name, causal=case.causal)
        # The metric is one of values and scales queries, so those have the same channels.
        if variant.metric_op is None or case.query.shape[2] == case.value.shape[2]
    ],
)
every_direction = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def tensors(case: AttentionCase, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query, key, value, slots."""
    query, key, value = (torch.from_numpy(array).to(dtype) for array in (case.query, case.key, case.value))
    return query, key, value, torch.from_numpy(case.slots)


def run(variant: Variant, case: AttentionCase, dtype: torch.dtype = torch.float64) -> Tensor:
    query, key, value, slots = tensors(case, dtype)
    return attend(variant.weigh, query, key, value, slots, **case.attributes)


def layer(variant: Variant, options: dict[str, str], case: AttentionCase) -> Attention:
    attributes = {name: value for name, value in case.attributes.items() if name != "causal"}
    config = AttentionConfig(variant=variant.name, **attributes, **options)
    return Attention(config, head_size=case.query.shape[2], causal=case.causal)


def padded_allowed(case: AttentionCase) -> Tensor:
    slots = torch.from_numpy(case.slots)
    return allowed_keys(slots, len(case.query), causal=case.causal, window=case.window)


def padded_weights(variant: Variant, case: AttentionCase) -> Array:
    """Weights [B, H, N, N] as the packed code has them, padding and all."""
    query, key, _, slots = tensors(case)
    steps = gather_steps(query, slots), gather_steps(key, slots)
    scores = attention_scores(*steps, scale=case.scale, softcap=case.softcap)
    return variant.weigh(scores, padded_allowed(case), epsilon=case.epsilon).numpy()


@every_layer
def test_layers_agree_with_a_reference_that_knows_no_packing(
    variant: Variant, options: dict[str, str], case: AttentionCase
) -> None:
    query, key, value, slots = tensors(case)
    previous = value.flip(0) / 3
    output = layer(variant, options, case)(query, key, value, slots, previous_value=previous)
    if variant.metric_op is not None:
        metric = reference.metric(
            MetricCase(
                name=case.name,
                lengths=case.lengths,
                value=case.value,
                previous_value=previous.numpy(),
                slots=case.slots,
                **options,
            )
        )
        group = case.query.shape[1] // case.key.shape[1]
        case = dataclasses.replace(case, query=case.query * metric.repeat(group, axis=1))
    np.testing.assert_allclose(output.numpy(), reference.attend(case, variant.weighting), rtol=0, atol=1e-12)


@every_case
def test_weights_agree_with_a_reference_that_knows_no_packing(variant: Variant, case: AttentionCase) -> None:
    weights = padded_weights(variant, case)
    for index, expected in enumerate(reference.weights_of(case, variant.weighting)):
        length = case.lengths[index]
        np.testing.assert_allclose(weights[index, :, :length, :length], expected, rtol=0, atol=1e-12)


@every_case
def test_float32_and_its_gradients_are_close_to_float64(variant: Variant, case: AttentionCase) -> None:
    results = {}
    for dtype in (torch.float32, torch.float64):
        query, key, value, slots = tensors(case, dtype)
        inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
        output = attend(variant.weigh, *inputs, slots, **case.attributes)
        assert output.dtype == dtype
        # Rows of 0 / 0 are in the grid: a select on the wrong side of the division leaves NaN gradients there.
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        assert all(gradient.isfinite().all() for gradient in gradients)
        results[dtype] = output.detach().double()
    # Scores of 300 lose four more digits before the weighting.
    tolerance = 1e-2 if "large" in case.name else 1e-5
    torch.testing.assert_close(results[torch.float32], results[torch.float64], rtol=0, atol=tolerance)


@every_case
def test_rows_sum_to_one_or_to_zero_where_nothing_can_be_weighed(variant: Variant, case: AttentionCase) -> None:
    weights = padded_weights(variant, case)
    assert (weights >= 0).all()
    for index, (segment, length) in enumerate(zip(segments_of(case.lengths), case.lengths, strict=True)):
        sums = weights[index, :, :length].sum(-1)
        key = case.key[segment].repeat(case.query.shape[1] // case.key.shape[1], axis=1)
        scores = np.einsum("qhe,khe->hqk", case.query[segment], key)
        seen = np.zeros((length, length), bool)
        for step in range(length):
            seen[step, reference.keys_seen(step, length, causal=case.causal, window=case.window)] = True
        empty = (
            (np.where(seen, scores, 0) == 0).all(-1) if variant.weighting == "expressive" else np.zeros_like(sums, bool)
        )
        assert (sums[empty] == 0).all()
        if case.epsilon == 0:
            np.testing.assert_allclose(sums[~empty], 1, rtol=0, atol=1e-12)
        else:
            assert (sums[~empty] < 1).all()
            assert (sums[~empty] > 0).all()


@every_weighting
def test_a_row_without_keys_is_zero_and_so_is_its_gradient(variant: Variant) -> None:
    scores = torch.tensor([[0.5, -2.0], [1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[False, False], [True, True]])
    weights = variant.weigh(scores, allowed)
    assert torch.equal(weights[0], torch.zeros(2, dtype=torch.float64))
    # Not even in passing: this raises where a NaN arises, though a later select would hide it.
    with torch.autograd.set_detect_anomaly(True):
        (gradient,) = torch.autograd.grad(weights.square().sum(), scores)
    assert torch.equal(gradient[0], torch.zeros(2, dtype=torch.float64))
    assert (gradient[1] != 0).all()


@every_case
def test_masked_keys_weigh_exactly_nothing(variant: Variant, case: AttentionCase) -> None:
    weights = padded_weights(variant, case)
    for index, length in enumerate(case.lengths):
        assert (weights[index, :, :, length:] == 0).all(), "padding has weight"
        for step in range(length):
            seen = reference.keys_seen(step, length, causal=case.causal, window=case.window)
            hidden = sorted(set(range(length)) - set(seen))
            assert (weights[index, :, step, hidden] == 0).all()


@every_weighting
@every_direction
def test_what_stands_behind_the_mask_has_no_effect(variant: Variant, causal: bool) -> None:
    case = attention_case("behind the mask", (5, 3), causal=causal, window=2)
    before = run(variant, case)
    # Out of sight of steps 0 and 1 of the first sequence: its steps 3 and 4, and the second sequence.
    case.key[3:] *= 1e6
    case.value[3:] = -1e6
    after = run(variant, case)
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[3], after[3])


@every_weighting
def test_permuting_keys_permutes_weights(variant: Variant) -> None:
    case = attention_case("permuted keys", (6,), causal=False)
    before = padded_weights(variant, case)
    order = np.array([3, 0, 5, 1, 4, 2])
    case.key[:] = case.key[order]
    np.testing.assert_allclose(padded_weights(variant, case), before[..., order], rtol=0, atol=1e-14)


@every_layer
def test_grouped_key_heads_are_repeated_key_heads(
    variant: Variant, options: dict[str, str], case: AttentionCase
) -> None:
    group = case.query.shape[1] // case.key.shape[1]
    query, key, value, slots = tensors(case)
    attention = layer(variant, options, case)
    # A repeated head is a group of its own; in the grid's ungrouped cases, every head becomes two.
    heads = group if group > 1 else 2
    query = query if group > 1 else query.repeat_interleave(2, 1)
    grouped = attention(query, key, value, slots, previous_value=value / 2)
    key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    repeated = attention(query, key, value, slots, previous_value=value / 2)
    torch.testing.assert_close(grouped, repeated, rtol=0, atol=1e-13)


@every_weighting
@every_direction
@pytest.mark.parametrize(
    "sizes", [{}, {"window": 2}, {"softcap": 1.5}, {"num_heads": 2, "num_key_heads": 1, "value_size": 3}], ids=str
)
def test_gradients_are_those_of_finite_differences(variant: Variant, causal: bool, sizes: dict[str, int]) -> None:
    # A metric is a constant to back-propagation: test_metric_laws.py.
    sizes = {"num_heads": 1, "num_key_heads": 1, "head_size": 2, "value_size": 2} | sizes
    case = attention_case("gradients", (3, 1), causal=causal, **sizes)
    query, key, value, slots = tensors(case)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    assert torch.autograd.gradcheck(lambda *rows: attend(variant.weigh, *rows, slots, **case.attributes), inputs)


def test_epsilon_has_the_gradients_of_finite_differences() -> None:
    case = attention_case("gradients", (3,), causal=True, num_heads=1, num_key_heads=1, head_size=2, epsilon=0.1)
    query, key, value, slots = tensors(case)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    weigh = VARIANTS["expressive"].weigh
    assert torch.autograd.gradcheck(lambda *rows: attend(weigh, *rows, slots, **case.attributes), inputs)


@every_weighting
@every_direction
def test_a_window_wider_than_the_sequence_is_none_and_one_of_one_sees_itself(variant: Variant, causal: bool) -> None:
    none, wide, narrow = (attention_case("window", (6, 2), causal=causal, window=window) for window in (0, 6, 1))
    assert torch.equal(run(variant, none), run(variant, wide))
    # One visible key has all the weight, whatever its score.
    torch.testing.assert_close(run(variant, narrow), torch.from_numpy(narrow.value), rtol=0, atol=1e-14)


def test_a_softcap_bounds_scores_and_leaves_small_ones_alone() -> None:
    case = attention_case("softcap bounds", (6,), causal=False, gain=50.0)
    query, key, _, slots = tensors(case)
    steps = gather_steps(query, slots), gather_steps(key, slots)
    raw = attention_scores(*steps, scale=case.scale)
    capped = attention_scores(*steps, scale=case.scale, softcap=2.0)
    assert raw.abs().max() > 20
    assert capped.abs().max() <= 2
    assert torch.equal(capped.sign(), raw.sign())
    torch.testing.assert_close(attention_scores(*steps, scale=case.scale, softcap=1e6), raw, rtol=1e-7, atol=0)


@every_weighting
@every_direction
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gain", [1e-4, 1.0, 50.0])
def test_half_precision_loses_no_more_than_its_own_rounding(
    variant: Variant, causal: bool, dtype: torch.dtype, gain: float
) -> None:
    case = attention_case("half precision", (6, 2, 1), causal=causal, head_size=8, value_size=8, gain=gain)
    query, key, value, slots = tensors(case, dtype)
    narrow = attend(variant.weigh, query, key, value, slots, **case.attributes)
    assert narrow.dtype == dtype
    # The same numbers, already rounded, in float64: what is left is the rounding of the result.
    exact = attend(variant.weigh, query.double(), key.double(), value.double(), slots, **case.attributes)
    atol = 4 * torch.finfo(dtype).eps * float(value.abs().max())
    torch.testing.assert_close(narrow.double(), exact, rtol=0, atol=atol)
