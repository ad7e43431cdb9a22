"""Deadlines over HTTP: what is late is answered 504, dropped from the queue and never computed."""

import asyncio
import threading

import numpy as np
import pytest

from tests.http.conftest import PREDICT, check_problem, talk, until

pytestmark = pytest.mark.http

INFER = "/v2/models/tiny/infer"


def predict(client, number, *, timeout=None, **fields):
    headers = {} if timeout is None else {"Timeout-Ms": timeout}
    return client.post(PREDICT, json={"sequences": [[number]], **fields}, headers=headers)


def infer(client, number, **parameters):
    inputs = [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [number]}]
    return client.post(INFER, json={"inputs": inputs, "parameters": parameters})


LATE = {
    "header": lambda client: predict(client, 2, timeout="5"),
    "field": lambda client: predict(client, 2, timeout_ms=5),
    "the shorter one": lambda client: predict(client, 2, timeout="100000", timeout_ms=5),
    "the other": lambda client: predict(client, 2, timeout="5", timeout_ms=100_000),
    "continuation": lambda client: predict(client, 2, timeout="5", **{"continue": 3}),
    "attention": lambda client: predict(client, 2, timeout_ms=5, attention={}),
    "open inference protocol": lambda client: infer(client, 2, timeout=5000),
}


@pytest.mark.parametrize("name", LATE)
def test_late_work_is_dropped(make_app, name):
    app, engine, batcher = make_app(max_queue=8)

    async def conversation(client):
        first = asyncio.create_task(predict(client, 1))
        await asyncio.to_thread(engine.started.acquire)
        held = app.state.budget.num_bytes
        assert check_problem(await LATE[name](client), 504) == "not answered within 5 ms"
        assert app.state.budget.num_bytes == held
        # What is dropped stays in the queue until the engine looks for work.
        num_waiting = batcher.num_waiting
        third = asyncio.create_task(predict(client, 3))
        await until(lambda: batcher.num_waiting > num_waiting)
        engine.release.release(3)
        assert [(await one).status_code for one in (first, third)] == [200, 200]

    talk(app, conversation)
    assert engine.seen == [[1], [3]]
    assert app.state.budget.num_bytes == 0


def test_the_service_has_a_deadline_of_its_own(make_app):
    app, engine, batcher = make_app(timeout_ms=5.0)

    async def conversation(client):
        assert check_problem(await predict(client, 1, timeout="100000"), 504) == "not answered within 5 ms"
        check_problem(await predict(client, 2), 504)
        check_problem(await infer(client, 3), 504)
        # The answer may be ahead of the queue, by a turn of the loop.
        for _ in range(10):
            await asyncio.sleep(0)
        engine.release.release(10)
        await asyncio.to_thread(batcher.close)

    talk(app, conversation)
    # The first one may have begun and cannot be stopped then; no other ever begins.
    assert len(engine.seen) <= 1


def test_a_late_stream_ends_with_an_error(make_app):
    app, engine, batcher = make_app()

    async def conversation(client):
        options = {"json": {"sequences": [[1]], "continue": 50, "timeout_ms": 1000}}
        going = asyncio.create_task(client.post(PREDICT, **options, headers={"Accept": "text/event-stream"}))
        engine.release.release(2)
        response = await going
        assert response.status_code == 200
        *_, last = response.text.removesuffix("\n\n").split("\n\n")
        assert last.startswith("event: error\n")
        assert '"status":504' in last
        assert "not answered within 1000 ms" in last
        assert "event: done" not in response.text
        engine.release.release(10)

    talk(app, conversation)
    assert app.state.budget.num_bytes == 0
    assert batcher.num_waiting == 0


def test_a_thread_keeps_its_turn_until_its_work_ends(make_app):
    app, _, _ = make_app()
    may_end, began = threading.Event(), threading.Semaphore(0)
    large = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1]}], "x": "x" * 100_000}

    def parse(*_, **__):
        began.release()
        may_end.wait()
        raise ValueError("nobody hears this")

    async def conversation(client):
        for _ in range(2):
            check_problem(await client.post(INFER, json=large, headers={"Timeout-Ms": "100"}), 504)
        assert app.state.parsing.locked()
        may_end.set()
        await until(lambda: not app.state.parsing.locked())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnserve.service.oip.routes._parse", parse)
        talk(app, conversation)
    # The second one never had a turn.
    assert began.acquire(blocking=False)
    assert not began.acquire(blocking=False)


WRONG = {
    "header": ({}, "0", "Timeout-Ms"),
    "header a word": ({}, "soon", "Timeout-Ms"),
    "field 0": ({"timeout_ms": 0}, None, "timeout_ms"),
    "field a text": ({"timeout_ms": "5"}, None, "timeout_ms"),
    "field true": ({"timeout_ms": True}, None, "timeout_ms"),
    "field beyond a day": ({"timeout_ms": 86_400_001}, None, "timeout_ms"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_timeout_is_named(server, name):
    fields, header, field = WRONG[name]
    headers = {} if header is None else {"Timeout-Ms": header}
    response = server.post("predict", {"sequences": [[1]], **fields}, headers=headers)
    assert check_problem(response, 422)
    assert [fault["field"] for fault in response.json()["errors"]] == [field]


def test_a_real_engine(server):
    body = {"sequences": np.ones((1500, 60), int).tolist(), "top_k": 1}
    assert check_problem(server.post("predict", body, headers={"Timeout-Ms": "0.1"}), 504)
    assert server.post("predict", {"sequences": [[1]], "timeout_ms": None}).status_code == 200
    assert server.post("predict", {"sequences": [[1]], "timeout_ms": 60_000}).status_code == 200
