"""Heads of sampled traffic in /metrics: nobody's unless asked for, and the very numbers of the attention route."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Served
from tests.http.conftest import PREDICT, talk, until

pytestmark = pytest.mark.http

LABELS = {"model": "tiny", "version": "1"}
QUESTION = {"diagnostics": ["entropy", "sink", "collapse"]}


def read_samples(client: httpx.Client) -> dict[tuple[Any, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name.startswith("attention_")
    }


def pick(samples: dict[tuple[Any, ...], float], name: str, **labels: str) -> float:
    return samples.get((name, *sorted({**LABELS, **labels}.items())), 0.0)


def wait_for_outcome(client: httpx.Client, outcome: str, number: int) -> dict[tuple[Any, ...], float]:
    for _ in range(3000):
        samples = read_samples(client)
        if pick(samples, "attention_samples_total", outcome=outcome) == number:
            return samples
        time.sleep(0.01)
    pytest.fail(f"expected {number} {outcome}, got {samples}")


@pytest.fixture
def sampled(bundles: Any, start_server: Any) -> Iterator[Served]:
    with start_server(bundles, "--sample-heads", "1", "--sample-heads-length", "50") as served:
        yield served
    assert "Traceback" not in served.log.read_text()


def test_nothing_is_sampled_by_default(server: Served) -> None:
    server.ask("predict", {"sequences": [[1, 2, 3]]})
    assert read_samples(server.client) == {}


def test_numbers_are_those_of_the_attention_route(sampled: Served) -> None:
    sequences = [[1, 2, 3, 4, 5], [7, 7, 8, 9], list(range(20)) * 2]
    expected: dict[str, np.ndarray] = {}
    for number, sequence in enumerate(sequences, 1):
        sampled.ask("predict", {"sequences": [sequence]})
        samples = wait_for_outcome(sampled.client, "measured", number)
        answer = sampled.ask("attention", {"sequences": [sequence], **QUESTION})
        for name in ("entropy_normalised", "sink"):
            found = np.array([entry[name] for entry in answer["diagnostics"]], np.float32).astype(float).reshape(3, 2)
            expected[name] = expected.get(name, 0) + found
        collapse = [entry["collapse"] for entry in answer["layer_diagnostics"]]
        expected["collapse"] = expected.get("collapse", 0) + (np.array(collapse) <= 0.5)
    for (layer, head), total in np.ndenumerate(expected["entropy_normalised"]):
        labels = {"layer": str(layer), "head": str(head)}
        assert pick(samples, "attention_entropy_ratio_sum", **labels) == total
        assert pick(samples, "attention_sink_ratio_sum", **labels) == expected["sink"][layer, head]
        assert pick(samples, "attention_entropy_ratio_count", **labels) == len(sequences)
    for layer, number in enumerate(expected["collapse"]):
        assert pick(samples, "attention_collapse_cosine_bucket", layer=str(layer), le="0.5") == number


def test_what_is_sampled_is_ordinary_traffic_of_every_protocol_and_is_no_traffic_itself(sampled: Served) -> None:
    # None of these.
    sampled.ask("attention", {"sequences": [[1, 2, 3]]})
    sampled.ask("predict", {"sequences": [[1, 2, 3]], "attention": {}})
    assert sampled.post("predict", {"sequences": [["?"]]}).status_code == 422
    tensors = [{"name": "tokens", "datatype": "INT64", "shape": [1, 4], "data": [1, 2, 3, 4]}]
    maps = {"inputs": tensors, "outputs": [{"name": "layers.0.query"}]}
    assert sampled.client.post("/v2/models/tiny/infer", json=maps).status_code == 200
    # All of these.
    sampled.ask("predict", {"sequences": [[1, 2, 3]]})
    sampled.ask("predict", {"sequences": [[1, 2, 3]], "continue": 2})
    assert sampled.client.post("/v2/models/tiny/infer", json={"inputs": tensors}).status_code == 200
    sampled.ask("predict", {"sequences": [[1] * 51]})
    for _ in range(3000):
        samples = read_samples(sampled.client)
        outcomes = ("measured", "interrupted", "length")
        numbers = [pick(samples, "attention_samples_total", outcome=outcome) for outcome in outcomes]
        if sum(numbers) == 4:
            break
        time.sleep(0.01)
    assert sum(numbers) == 4
    assert numbers[2] == 1
    stats = sampled.client.get("/v2/models/tiny/stats").json()["model_stats"][0]
    # 3 with questions, of 1 + 1 + 1 steps; and predict, two of a continuation, infer and the long one.
    assert stats["inference_count"] == 8


def test_a_busy_service_is_left_alone(make_app: Any) -> None:
    """Requests that wait are answered first; the engine of the test answers them on its word, and captures nothing."""
    app, engine, _ = make_app(sample_heads=1.0)
    sampler, measured = app.state.sampler, []

    def run_aside(jobs: Any, interrupt: Any) -> Any:
        measured.append(len(engine.seen))
        raise RuntimeError("what it would have found is not asked")

    engine.run_aside = run_aside

    async def conversation(client: httpx.AsyncClient) -> None:
        tasks = [asyncio.create_task(client.post(PREDICT, json={"sequences": [[1, number]]})) for number in range(2)]
        await asyncio.to_thread(engine.started.acquire)
        engine.release.release()
        await asyncio.to_thread(engine.started.acquire)
        # One has been answered, and is taken; the other one is being computed.
        await until(lambda: len(sampler._waiting) == 1)
        assert measured == []
        engine.release.release()
        for response in await asyncio.gather(*tasks):
            assert response.status_code == 200
        await until(lambda: len(measured) == 2)

    talk(app, conversation)
    assert measured == [2, 2]
