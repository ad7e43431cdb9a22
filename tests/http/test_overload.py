"""Too many clients, clients who leave, models that load, stop or fail: an app whose engine runs on the test's word."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.http.conftest import POISON, PREDICT, check_problem, talk, until

pytestmark = pytest.mark.http

ATTENTION = PREDICT.replace("predict", "attention")


def test_a_full_queue_is_429(make_app):
    app, engine, batcher = make_app(max_queue=2)

    async def conversation(client):
        first = asyncio.create_task(client.post(PREDICT, json={"sequences": [[1]]}))
        await asyncio.to_thread(engine.started.acquire)
        waiting = asyncio.create_task(client.post(PREDICT, json={"sequences": [[2], [3]]}))
        await until(lambda: batcher.num_waiting == 2)
        refused = await client.post(PREDICT, json={"sequences": [[4]]})
        assert check_problem(refused, 429) == "2 sequences are waiting and at most 2 may; 1 more were sent"
        # What would never fit is another matter.
        assert "at most 2" in check_problem(await client.post(PREDICT, json={"sequences": [[4]] * 3}), 413)
        assert (await client.get("/healthz")).status_code == 200
        engine.release.release(3)
        assert (await first).status_code == (await waiting).status_code == 200
        assert len((await waiting).json()["predictions"]) == 2

    talk(app, conversation)
    assert engine.seen == [[1], [2], [3]]


def test_memory_for_answers_is_shared(make_app):
    app, engine, _ = make_app(max_pending_bytes=(8 + 20 * 4) * 3)

    async def conversation(client):
        first = asyncio.create_task(client.post(PREDICT, json={"sequences": [[1, 2]], "positions": "all"}))
        await asyncio.to_thread(engine.started.acquire)
        refused = await client.post(PREDICT, json={"sequences": [[4, 5]], "positions": "all"})
        assert "hold 176 of 264 bytes, this one needs 176 more" in check_problem(refused, 429)
        too_much = await client.post(PREDICT, json={"sequences": [[4] * 4], "positions": "all"})
        assert "may take 264 bytes, those of this request need 352" in check_problem(too_much, 413)
        engine.release.release(2)
        assert (await first).status_code == 200
        assert (await client.post(PREDICT, json={"sequences": [[4, 5]], "positions": "all"})).status_code == 200

    talk(app, conversation)
    assert app.state.budget.num_bytes == 0


def test_too_many_large_answers_are_429(make_app, monkeypatch):
    app, engine, _ = make_app(max_encoding_queue=1)
    engine.release.release(100)
    engine.runtime = SimpleNamespace(weighing=None)
    # 320 x 320 weights of a head: more than is written on the way.
    weights = [{"weights": np.zeros((1, 1, 320, 320), np.float32)}]
    monkeypatch.setattr("attnserve.service.inquiry.compute_arrays", lambda *_: weights)
    body = {"sequences": [[1] * 320], "layers": [0], "heads": [0], "quantity": "weights"}
    headers = {"Accept": "application/x-safetensors"}
    turns = app.state.encoding

    async def conversation(client):
        while not turns.locked():
            await turns.acquire()
        waiting = asyncio.create_task(client.post(ATTENTION, json=body, headers=headers))
        await until(lambda: turns.num_waiting == 1)
        refused = await client.post(ATTENTION, json=body, headers=headers)
        assert check_problem(refused, 429) == "1 answers wait for encoding, and at most 1 may"
        # Small ones need no turn.
        assert (await client.post(PREDICT, json={"sequences": [[1]]})).status_code == 200
        turns.release()
        assert (await waiting).status_code == 200

    talk(app, conversation)
    assert 'inference_rejected_total{reason="encoding",status="429"} 1.0' in app.state.metrics.render().decode()
    assert app.state.budget.num_bytes == 0


def test_not_loaded_yet_is_503(make_app):
    app, _, _ = make_app(loaded=False)

    async def conversation(client):
        assert check_problem(await client.get("/readyz"), 503) == "models are being loaded"
        assert check_problem(await client.get("/v1/models/tiny"), 503) == "tiny is being loaded"
        assert check_problem(await client.post(PREDICT, json={"sequences": [[1]]}), 503) == "tiny is being loaded"
        check_problem(await client.post("/v1/models/nobody/predict", json={"sequences": [[1]]}), 404)
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert model == {"name": "tiny", "version": None, "versions": [1], "ready": False, "reason": "is being loaded"}
        assert (await client.get("/healthz")).status_code == 200

    talk(app, conversation)


def test_a_stopped_model_is_503(make_app):
    app, _, batcher = make_app()
    batcher.close()

    async def conversation(client):
        assert check_problem(await client.get("/readyz"), 503) == "no model of the repository answers"
        assert check_problem(await client.post(PREDICT, json={"sequences": [[1]]}), 503) == "tiny has stopped"
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert (model["ready"], model["reason"]) == (False, "has stopped")

    talk(app, conversation)


def test_work_that_is_queued_when_the_model_stops_is_finished(make_app):
    app, engine, batcher = make_app()

    async def conversation(client):
        asked = [asyncio.create_task(client.post(PREDICT, json={"sequences": [[number]]})) for number in range(2)]
        await asyncio.to_thread(engine.started.acquire)
        await until(lambda: batcher.num_waiting == 1)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await until(lambda: not batcher.is_open)
        check_problem(await client.post(PREDICT, json={"sequences": [[3]]}), 503)
        engine.release.release(2)
        await closing
        assert [(await one).status_code for one in asked] == [200, 200]

    talk(app, conversation)


def test_only_the_request_that_breaks_the_model_fails(make_app):
    app, engine, _ = make_app(max_queue=8)
    engine.release.release(100)

    async def conversation(client):
        bodies = [[[1]], [[2], [POISON]], [[3]]]
        answers = await asyncio.gather(*(client.post(PREDICT, json={"sequences": body}) for body in bodies))
        assert [answer.status_code for answer in answers] == [200, 500, 200]
        detail = check_problem(answers[1], 500)
        assert detail == "the model failed on this input; the service's log has details"

    talk(app, conversation)


def test_a_bug_is_told_to_the_log_and_not_to_the_client(make_app):
    app, engine, _ = make_app()
    engine.release.release(100)

    async def conversation(client):
        response = await client.post(PREDICT, json={"sequences": [[1]], "top_k": 5})
        detail = check_problem(response, 500)
        assert detail == "this is a bug in attnserve; the service's log has the traceback"
        # Starlette raises it again and uvicorn then hangs up: the client should know.
        assert response.headers["Connection"] == "close"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnserve.service.routes.describe_answer", lambda *_: 1 / 0)
        talk(app, conversation)
    assert app.state.budget.num_bytes == 0


def test_work_of_a_client_who_left_is_dropped(make_app, serve_app):
    app, engine, batcher = make_app(max_queue=8)
    place = urlsplit(serve_app(app))

    def send(body):
        connection = socket.create_connection((place.hostname, place.port), timeout=60)
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection

    def wait(condition):
        while not condition():
            time.sleep(0)

    with send(b'{"sequences": [[1]]}') as patient:
        engine.started.acquire()
        held = app.state.budget.num_bytes
        with send(b'{"sequences": [[2]]}'), send(b'{"sequences": [[3]]}') as second:
            wait(lambda: batcher.num_waiting == 2)
            second.close()
            wait(lambda: app.state.budget.num_bytes == 2 * held)
        wait(lambda: app.state.budget.num_bytes == held)
        with send(b'{"sequences": [[4]]}') as last:
            wait(lambda: batcher.num_waiting == 3)
            engine.release.release(2)
            for connection in (patient, last):
                assert b"200 OK" in b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
    assert engine.seen == [[1], [4]]


def test_a_stream_whose_client_left_is_over(make_app, serve_app, caplog):
    app, engine, batcher = make_app(max_queue=8)
    url = serve_app(app)
    body = {"sequences": [[1]], "continue": 50}
    engine.release.release(2)
    with httpx.stream("POST", f"{url}{PREDICT}", json=body, headers={"Accept": "text/event-stream"}) as response:
        text, parts = "", response.iter_text()
        # Held: an iterator that nobody holds closes the connection, maybe before the third step has begun.
        while text.count("\n\n") < 2:
            text += next(parts)
        for _ in range(3):
            assert engine.started.acquire(timeout=20)
        assert app.state.budget.num_bytes > 0
    # The third step is being computed and cannot be stopped; nobody asks for a fourth.
    while app.state.budget.num_bytes:
        time.sleep(0)
    engine.release.release(100)
    assert httpx.post(f"{url}{PREDICT}", json={"sequences": [[7]]}).status_code == 200
    assert engine.seen == [[1], [1, 0], [1, 0, 0], [7]]
    assert batcher.num_waiting == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_full_queue_does_not_end_what_has_begun(make_app, accept):
    app, engine, batcher = make_app(max_queue=2)

    async def conversation(client):
        body = {"sequences": [[1], [2]], "continue": 2}
        going = asyncio.create_task(client.post(PREDICT, json=body, headers={"Accept": accept}))
        await asyncio.to_thread(engine.started.acquire)
        engine.release.release(1)
        # While the second half of the first step runs, others fill the queue.
        await asyncio.to_thread(engine.started.acquire)
        waiting = [asyncio.create_task(client.post(PREDICT, json={"sequences": [[3]]})) for _ in range(2)]
        await until(lambda: batcher.num_waiting == 2)
        engine.release.release(1)
        # One of them runs, and the second step needs two places.
        async with asyncio.timeout(20):
            await until(lambda: batcher.num_waiting == 3)
        refused = await client.post(PREDICT, json={"sequences": [[4]]})
        assert check_problem(refused, 429).startswith("3 sequences are waiting and at most 2 may")
        engine.release.release(100)
        assert {response.status_code for response in await asyncio.gather(going, *waiting)} == {200}
        assert "error" not in (await going).text

    talk(app, conversation)
    assert sorted(engine.seen) == [[1], [1, 0], [2], [2, 0], [3], [3]]


def test_a_model_that_stops_ends_its_streams_with_an_error(make_app):
    app, engine, batcher = make_app()

    async def conversation(client):
        body = {"sequences": [[1]], "continue": 50}
        going = asyncio.create_task(client.post(PREDICT, json=body, headers={"Accept": "text/event-stream"}))
        engine.release.release(1)
        for _ in range(2):
            await asyncio.to_thread(engine.started.acquire)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await until(lambda: not batcher.is_open)
        engine.release.release(1)
        await closing
        response = await going
        assert response.status_code == 200
        names = [line for line in response.text.split("\n") if line.startswith("event")]
        assert names == ["event: token"] * 2 + ["event: error"]
        assert '"status":503' in response.text

    talk(app, conversation)
    assert app.state.budget.num_bytes == 0


def test_a_client_who_leaves_while_sending_is_no_news(make_app, serve_app, caplog):
    app, _, _ = make_app()
    place = urlsplit(serve_app(app))
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert httpx.get(f"http://{place.netloc}/healthz").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_many_clients_at_once(server):
    random = np.random.default_rng(0)
    bodies = [{"sequences": [random.integers(0, 20, n).tolist() for n in random.integers(1, 90, 8)]} for _ in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda body: server.ask("predict", body), bodies * 3))
    for body, answer in zip(bodies * 3, answers, strict=True):
        assert [prediction["positions"] for prediction in answer["predictions"]] == [
            [len(sequence) - 1] for sequence in body["sequences"]
        ]
    for body, answer in list(zip(bodies, answers, strict=False))[:3]:
        alone = server.ask("predict", body)
        for ours, theirs in zip(answer["predictions"], alone["predictions"], strict=True):
            given, expected = ([entry["logit"] for entry in one["top"][0]] for one in (ours, theirs))
            np.testing.assert_allclose(given, expected, atol=1e-5)
