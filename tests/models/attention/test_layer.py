import inspect
import re
from typing import Any

import pytest
import torch

from attnserve.models import Attention, AttentionConfig, TransformerConfig
from attnserve.models.attention import VARIANTS, dot_product_attention, elliptical_attention, expressive_attention
from attnserve.models.attention.packed import attend
from attnserve.models.positions import RotaryPositions
from tests.conformance.cases import layer_options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "linear"}, "variant: expected one of dot_product, expressive, elliptical, got 'linear'"),
        ({"scale": 0.0}, "scale: expected a float32 number > 0, got 0.0"),
        ({"scale": 1e39}, "scale: expected a float32 number > 0, got 1e+39"),
        ({"softcap": 1e-40}, "softcap: expected 0 or a float32 number > 0, got 1e-40"),
        ({"scale": -1.0}, "scale: expected a float32 number > 0, got -1.0"),
        ({"scale": float("nan")}, "scale: expected a float32 number > 0, got nan"),
        ({"variant": "expressive", "epsilon": -1e-6}, "epsilon: expected 0 or a float32 number > 0, got -1e-06"),
        ({"variant": "expressive", "epsilon": float("inf")}, "epsilon: expected 0 or a float32 number > 0, got inf"),
        ({"epsilon": 1e-6}, "epsilon: only expressive attention has one; expected 0, got 1e-06"),
        ({"window": -1}, "window: expected an integer from 0 to 2147483647, got -1"),
        ({"window": 2**31}, "window: expected an integer from 0 to 2147483647, got 2147483648"),
        ({"window": 10**400}, "window: expected an integer from 0 to 2147483647, got 1000"),
        ({"softcap": -1.0}, "softcap: expected 0 or a float32 number > 0, got -1.0"),
        ({"softcap": float("nan")}, "softcap: expected 0 or a float32 number > 0, got nan"),
        (
            {"variant": "elliptical", "scope": "prefix"},
            "scaling: elliptical attention needs one of max, mean, got None",
        ),
        ({"variant": "elliptical", "scaling": "max"}, "scope: elliptical attention needs one of sequence, prefix"),
        (
            {"variant": "elliptical", "scope": "prefix", "scaling": "median"},
            "scaling: expected one of max, mean, got 'median'",
        ),
        ({"scope": "prefix"}, "scope: only elliptical attention has one; expected None, got 'prefix'"),
        (
            {"variant": "expressive", "scaling": "max"},
            "scaling: only elliptical attention has one; expected None, got 'max'",
        ),
    ],
    ids=str,
)
def test_what_no_variant_could_mean_is_refused_by_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        AttentionConfig(**fields)


def test_the_default_scale_is_that_of_the_head() -> None:
    assert Attention(AttentionConfig(), head_size=16, causal=True).scale == 0.25
    assert Attention(AttentionConfig(scale=3.0), head_size=16, causal=True).scale == 3.0


def test_a_scope_that_leaks_is_refused_before_anything_runs() -> None:
    config = AttentionConfig(variant="elliptical", scope="sequence", scaling="max")
    with pytest.raises(ValueError, match=r"^scope: 'sequence' lets a causal model"):
        Attention(config, head_size=4, causal=True)


def test_every_attribute_reaches_the_function() -> None:
    config = AttentionConfig(variant="expressive", scale=0.7, epsilon=0.1, window=2, softcap=3.0)
    query, key, value = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    slots = torch.tensor([[0, 1, 2], [3, 4, 5]])
    output = Attention(config, head_size=4, causal=False)(query, key, value, slots)
    attributes = {"causal": False, "scale": 0.7, "epsilon": 0.1, "window": 2, "softcap": 3.0}
    # All of them, and none could be dropped unnoticed.
    parameters = inspect.signature(attend).parameters.values()
    assert attributes.keys() == {parameter.name for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY}
    assert torch.equal(output, expressive_attention(query, key, value, slots, **attributes))
    for name, other in (("causal", True), ("scale", 1.0), ("epsilon", 0.0), ("window", 0), ("softcap", 0.0)):
        changed = expressive_attention(query, key, value, slots, **(attributes | {name: other}))
        assert not torch.equal(output, changed), name


def test_a_variant_with_a_metric_needs_previous_values() -> None:
    attention = Attention(
        AttentionConfig(variant="elliptical", scope="prefix", scaling="max"), head_size=2, causal=True
    )
    rows = torch.ones(1, 1, 2)
    with pytest.raises(ValueError, match=r"^previous_value: elliptical attention needs the layer before's values$"):
        attention(rows, rows, rows, torch.tensor([[0]]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_a_variant_with_a_metric_looks_at_previous_values(variant: str) -> None:
    options = layer_options(variant, causal=True)[0]
    attention = Attention(AttentionConfig(variant=variant, **options), head_size=4, causal=True)
    query, key, value, previous = torch.randn(4, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    slots = torch.arange(5)[None]
    outputs = [attention(query, key, value, slots, previous_value=values) for values in (previous, previous.flip(0))]
    assert torch.equal(*outputs) == (VARIANTS[variant].metric_op is None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_rotary_positions_only_distances_matter(variant: str) -> None:
    # False of a metric applied after the rotation.
    config = TransformerConfig(
        vocabulary_size=2, max_length=20, width=8, num_heads=2, attention=(AttentionConfig(),), positions="rotary"
    )
    rotary = RotaryPositions(config).double()
    # The stored tables are rounded to float32, which alone would move scores by 1e-7.
    angle = torch.arange(20, dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(2, dtype=torch.float64) / 2)
    rotary.cosine, rotary.sine = angle.cos(), angle.sin()
    generator = torch.Generator().manual_seed(0)
    query, key, value, previous = torch.randn(4, 5, 2, 4, generator=generator, dtype=torch.float64)
    for options in layer_options(variant, causal=True):
        attention = Attention(AttentionConfig(variant=variant, **options), head_size=4, causal=True)
        here, there = (
            attention(
                query,
                key,
                value,
                torch.arange(5)[None],
                previous_value=previous,
                rotate=rotary.at(torch.arange(5) + shift),
            )
            for shift in (0, 13)
        )
        torch.testing.assert_close(here, there, rtol=0, atol=1e-12)
        plain = attention(query, key, value, torch.arange(5)[None], previous_value=previous)
        assert not torch.allclose(here, plain, atol=1e-3)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_key_heads_must_divide_heads(num_heads: int) -> None:
    # One head for two keys would leave no head at all, silently.
    query, rows = torch.ones(3, num_heads, 4), torch.ones(3, 2, 4)
    slots = torch.arange(3)[None]
    message = f"^key: expected a number of heads that divides {num_heads}, got 2$"
    with pytest.raises(ValueError, match=message):
        dot_product_attention(query, rows, rows, slots, causal=True, scale=1.0)
    with pytest.raises(ValueError, match=message):
        elliptical_attention(query, rows, rows, rows, slots, causal=True, scope="prefix", scaling="max")
