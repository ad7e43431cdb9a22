"""Our histograms say what those of Prometheus' own client say."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client import Histogram as Reference

from attnserve.service.histogram import Histogram

# As in service/metrics.py: a series more for every one, of when it began.
disable_created_metrics()

BOUNDS = (0.5, 1, 2.5, 10)


def render(histogram: Histogram) -> bytes:
    registry = CollectorRegistry()
    registry.register(histogram)
    return generate_latest(registry)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([*BOUNDS, 0.0, 0.4999, 0.5001, 11.0, 1e9])),
        max_size=30,
    )
)
def test_the_text_is_that_of_the_client_library(values: list[tuple[str, float]]) -> None:
    registry = CollectorRegistry()
    reference = Reference("size", "A size.", ("model",), buckets=BOUNDS, registry=registry)
    ours = Histogram("size", "A size.", ("model",), BOUNDS)
    for label, value in values:
        reference.labels(label).observe(value)
        ours.labels(label)(value)
    assert render(ours) == generate_latest(registry)


def test_threads_lose_nothing() -> None:
    histogram = Histogram("size", "A size.", ("model",), BOUNDS)

    def observe() -> None:
        for _ in range(2000):
            histogram.labels("a")(1.0)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b'size_count{model="a"} 8000.0' in render(histogram)
    assert b'size_sum{model="a"} 8000.0' in render(histogram)


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb"])
def test_a_label_is_one_line_whatever_it_holds(value: str) -> None:
    histogram = Histogram("size", "A size.", ("model",), BOUNDS)
    histogram.labels(value)(1.0)
    (line,) = (line for line in render(histogram).splitlines() if b"_count" in line)
    assert line.endswith(b'"} 1.0')
