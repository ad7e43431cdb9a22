"""Live heads: sums of what was measured, under labels that end with their model."""

from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from attnserve.service.live_heads import OUTCOMES, HeadMetrics, LiveHeads

NAN = np.nan
LABELS = {"model": "here", "version": "3"}


def measures(entropy, sink, collapse):
    return {
        "entropy_bits": np.zeros((2, 2), np.float32),
        "entropy_normalised": np.array(entropy, np.float32),
        "sink": np.array(sink, np.float32),
        "collapse": np.array(collapse, np.float32),
    }


@pytest.fixture
def models():
    return [SimpleNamespace(name="here", version=3, live=LiveHeads())]


@pytest.fixture
def value_of(models):
    registry = CollectorRegistry()
    registry.register(HeadMetrics(lambda: models))
    return lambda name, **labels: registry.get_sample_value(name, {**LABELS, **labels})


def test_every_head_has_its_sum_and_its_count(models, value_of):
    live = models[0].live
    live.add(measures([[0.5, 0.25], [1, 0]], [[1, 0], [0, 1]], [0.5, 0.25]))
    live.add(measures([[0.25, 0.25], [1, 0.5]], [[0, 0], [0, 1]], [0.5, 0.25]))
    assert value_of("attention_entropy_ratio_sum", layer="0", head="0") == 0.75
    assert value_of("attention_entropy_ratio_sum", layer="1", head="1") == 0.5
    assert value_of("attention_entropy_ratio_count", layer="1", head="1") == 2
    assert value_of("attention_sink_ratio_sum", layer="1", head="1") == 2
    assert value_of("attention_sink_ratio_sum", layer="0", head="0") == 1


def test_what_is_no_number_is_not_counted(models, value_of):
    models[0].live.add(measures([[NAN, 0.25], [1, 0]], [[1, 0], [0, 1]], [NAN, 0.25]))
    assert value_of("attention_entropy_ratio_sum", layer="0", head="0") == 0
    assert value_of("attention_entropy_ratio_count", layer="0", head="0") == 0
    assert value_of("attention_entropy_ratio_count", layer="0", head="1") == 1
    assert value_of("attention_collapse_cosine_bucket", layer="0", le="+Inf") == 0
    assert value_of("attention_collapse_cosine_bucket", layer="1", le="+Inf") == 1


@pytest.mark.parametrize(
    ("cosine", "below", "bound"),
    [(-0.75, None, "-0.5"), (-0.25, "-0.5", "0.0"), (0.95, "0.9", "0.95"), (1.0, "0.99", "1.0")],
)
def test_cosines_are_in_their_bucket(models, value_of, cosine, below, bound):
    models[0].live.add(measures([[0, 0], [0, 0]], [[0, 0], [0, 0]], [cosine, 0]))
    assert value_of("attention_collapse_cosine_bucket", layer="0", le=bound) == 1
    if below is not None:
        assert value_of("attention_collapse_cosine_bucket", layer="0", le=below) == 0
    # It could fall, and counters do not.
    assert value_of("attention_collapse_cosine_sum", layer="0") is None


def test_outcomes_are_told_from_the_first_one_on(models, value_of):
    assert value_of("attention_samples_total", outcome="measured") is None
    models[0].live.outcomes["interrupted"] += 1
    found = {outcome: value_of("attention_samples_total", outcome=outcome) for outcome in OUTCOMES}
    assert found == {**dict.fromkeys(OUTCOMES, 0), "interrupted": 1}


def test_what_is_of_a_model_that_is_gone_is_gone(models, value_of):
    models[0].live.add(measures([[0, 0], [0, 0]], [[0, 0], [0, 0]], [0, 0]))
    models[0].live.outcomes["measured"] += 1
    models[0] = SimpleNamespace(name="here", version=4, live=LiveHeads())
    for name in ("attention_entropy_ratio_count", "attention_sink_ratio_count"):
        assert value_of(name, layer="0", head="0") is None
    assert value_of("attention_samples_total", outcome="measured") is None
