"""What operators see of a running service: metrics, request ids, log lines, and how it stops."""

import asyncio
import json
import signal
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.http.conftest import PREDICT, check_problem, talk, until

pytestmark = pytest.mark.http


def samples(served):
    text = served.client.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def count(served, model, status):
    labels = {"model": model, "route": "/v1/models/{model}/predict", "status": str(status)}
    return samples(served).get(("inference_request_duration_seconds_count", *sorted(labels.items())), 0.0)


def test_metrics_are_prometheus_text(server):
    response = server.client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(server)[("model_ready", ("model", "tiny"))] == 1


@pytest.mark.parametrize(("document", "status"), [({"sequences": [[1]]}, 200), ({"sequences": [["?"]]}, 422)])
def test_every_request_is_counted(server, document, status):
    before = count(server, "tiny", status)
    assert server.post("predict", document).status_code == status
    assert count(server, "tiny", status) == before + 1


def test_names_that_clients_make_up_are_no_labels(server):
    before = count(server, "", 404)
    assert server.post("predict", {"sequences": [[1]]}, model="made-up").status_code == 404
    assert count(server, "", 404) == before + 1
    server.client.get("/made/up/path")
    assert "made" not in server.client.get("/metrics").text


def test_work_is_counted_per_model(server):
    labels = (("model", "tiny"), ("version", "1"))
    before = samples(server)
    server.ask("predict", {"sequences": [[1, 2, 3], [4]]})
    after = samples(server)
    for name, more in (("inference_queue_duration_seconds_count", 2), ("inference_batch_tokens_sum", 4)):
        assert after[(name, *labels)] == before.get((name, *labels), 0) + more


@pytest.mark.parametrize("given", ["a-1.b_2", "x" * 64])
def test_an_id_that_can_be_logged_comes_back(server, given):
    response = server.client.get("/healthz", headers={"X-Request-Id": given})
    assert response.headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a;b", "é".encode()])
def test_others_get_a_new_one(server, given):
    headers = {} if given is None else {"X-Request-Id": given}
    first, second = (server.client.get("/healthz", headers=headers).headers["X-Request-Id"] for _ in range(2))
    assert len(first) == 32
    assert first != second


def test_log_lines_are_json_and_hold_nothing_that_was_sent(bundles, start_server):
    with start_server(bundles, "--log-format", "json") as served:
        secret = {"sequences": [["confidential"]]}
        headers = {"X-Request-Id": "mine"}
        assert served.post("predict", secret, headers=headers).status_code == 422
        assert served.client.get("/private/path?token=hidden").status_code == 404
    text = served.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "mine"]
    assert line["status"] == 422
    assert line["model"] == "tiny"
    assert line["route"] == "/v1/models/{model}/predict"
    assert line["ms"] > 0
    for word in ("confidential", "private", "hidden"):
        assert word not in text


def test_a_service_told_to_stop_is_not_ready_but_answers_until_it_stops(bundles, start_server):
    with start_server(bundles, "--drain-delay-ms", "2000") as served:
        served.process.send_signal(signal.SIGTERM)
        while served.client.get("/readyz").status_code == 200:
            time.sleep(0.01)
        assert "about to stop" in served.client.get("/readyz").json()["detail"]
        assert served.client.get("/healthz").status_code == 200
        assert served.post("predict", {"sequences": [[1]]}).status_code == 200
        assert served.process.wait(timeout=30) == 0
    assert "Traceback" not in served.log.read_text()


def test_told_twice_it_stops_at_once(bundles, start_server):
    with start_server(bundles, "--drain-delay-ms", "600000") as served:
        served.process.send_signal(signal.SIGTERM)
        while served.client.get("/readyz").status_code == 200:
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=30) == 0


def test_an_answer_says_where_its_time_went(server):
    response = server.post("predict", {"sequences": [[1, 2, 3]]})
    stages = dict(entry.split(";dur=") for entry in response.headers["Server-Timing"].split(", "))
    assert list(stages) == ["parse", "queue", "compute", "render"]
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())


def test_what_was_refused_says_how_far_it_came(server):
    assert "Server-Timing" not in server.post("predict", b"{").headers
    assert "Server-Timing" not in server.client.get("/healthz").headers


def test_why_clients_are_turned_away_is_counted(make_app):
    app, engine, batcher = make_app(max_queue=2)

    async def conversation(client):
        tasks = [asyncio.create_task(client.post(PREDICT, json={"sequences": [[1]]}))]
        await asyncio.to_thread(engine.started.acquire)
        tasks += [asyncio.create_task(client.post(PREDICT, json={"sequences": [[1]]})) for _ in range(2)]
        await until(lambda: batcher.num_waiting == 2)
        check_problem(await client.post(PREDICT, json={"sequences": [[1]]}), 429)
        check_problem(await client.post(PREDICT, content=b"{"), 400)
        check_problem(await client.get("/made/up"), 404)
        engine.release.release(3)
        await asyncio.gather(*tasks)
        text = (await client.get("/metrics")).text
        for status, reason in ((429, "queue_full"), (400, "bad_request"), (404, "")):
            assert f'inference_rejected_total{{reason="{reason}",status="{status}"}} 1.0' in text
        assert 'provider="CPUExecutionProvider"' in text

    talk(app, conversation)
