"""The routes of exports, over a queue in memory."""

import asyncio
import json
import threading

import httpx
import pytest

from attnserve.service.exports.job import describe_job
from attnserve.service.exports.schemas import ExportBody, ExportJob, ExportList, Options
from attnserve.service.problems import NotInstalled
from tests.fake_exports import FILES, LINES, job_id, make_order
from tests.http.conftest import check_problem

EXPORTS = "/v1/exports"
SMALLEST = {"checkpoint": "mine", "model": "tiny"}
DIGESTS = {"ci": "1" * 64, "bob": "2" * 64}


def read_events(response):
    """Id, name and data of every event; comments are left out."""
    events = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return events


def test_an_export_is_a_job(service, queue):
    response = service.ask("POST", EXPORTS, json=SMALLEST)
    assert response.status_code == 202
    document = response.json()
    assert response.headers["Location"] == f"{EXPORTS}/{document['id']}"
    assert queue.jobs[document["id"]].order == make_order(version=1)
    assert (document["state"], document["version"], document["files"]) == ("queued", 1, FILES)
    ExportJob.model_validate(document, strict=True)


def test_the_examples_of_openapi_work(service, queue):
    operation = service.app.openapi()["paths"][EXPORTS]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"].values()
    assert len(examples) == 2

    async def conversation(client):
        for example in examples:
            assert (await client.post(EXPORTS, json=example["value"])).status_code == 202

    service.talk(conversation)
    assert len(queue.jobs) == 2


@pytest.mark.parametrize(("body", "schema"), [({"": 0}, ExportBody), ({"options": {"": 0}}, Options)])
def test_schema_and_parser_know_the_same_fields(service, body, schema):
    # Requests are parsed by hand; the schema is only shown.
    (fault,) = service.ask("POST", EXPORTS, json=body).json()["errors"]
    known = fault["message"].removeprefix("unknown field; expected one of ").split(", ")
    assert known == list(schema.model_fields)


def test_a_wrong_field_is_422_and_nothing_is_read(service, queue):
    response = service.ask("POST", EXPORTS, json={**SMALLEST, "version": 0})
    assert check_problem(response, 422).startswith("version: expected an integer")
    assert not service.pinned
    assert not queue.jobs


def test_a_checkpoint_that_is_not_there_is_422(service):
    response = service.ask("POST", EXPORTS, json={**SMALLEST, "checkpoint": "yours"})
    check_problem(response, 422)
    assert [fault["field"] for fault in response.json()["errors"]] == ["checkpoint"]


def test_a_folder_is_a_checkpoint_too(service, queue):
    response = service.ask("POST", EXPORTS, json={**SMALLEST, "checkpoint": "/trained/mine"})
    assert response.status_code == 202
    assert queue.jobs[response.json()["id"]].order.is_path


def test_a_folder_that_takes_long_to_read_is_waited_for_by_nobody_else(service):
    begun, release = threading.Event(), threading.Event()
    pin = service.pin

    def slow(checkpoint):
        if checkpoint.startswith("/"):
            begun.set()
            release.wait()
        return pin(checkpoint)

    object.__setattr__(service.app.state.exports, "pin", slow)

    async def conversation(client):
        reading = asyncio.create_task(client.post(EXPORTS, json={**SMALLEST, "checkpoint": "/trained/mine"}))
        await asyncio.to_thread(begun.wait)
        assert (await client.post(EXPORTS, json=SMALLEST)).status_code == 202
        release.set()
        assert (await reading).status_code == 202

    service.talk(conversation)


def test_a_large_body_is_413(service):
    check_problem(service.ask("POST", EXPORTS, json={**SMALLEST, "x": "x" * 100_000}), 413)


def test_a_version_is_exported_once(service):
    async def conversation(client):
        first = await client.post(EXPORTS, json={**SMALLEST, "version": 3})
        second = await client.post(EXPORTS, json={**SMALLEST, "version": 3})
        assert first.json()["id"] in check_problem(second, 409)
        third = await client.post(EXPORTS, json=SMALLEST)
        assert third.json()["version"] == 4

    service.talk(conversation)


def test_a_request_that_is_sent_again_is_the_same_job(service, queue):
    headers = {"Idempotency-Key": '"once"'}

    async def conversation(client):
        first = await client.post(EXPORTS, json=SMALLEST, headers=headers)
        # What was uploaded meanwhile is another request's.
        service.files = {**FILES, "config.json": "3d" * 32}
        second = await client.post(EXPORTS, json={**SMALLEST, "precision": None}, headers=headers)
        assert first.status_code == second.status_code == 202
        assert first.headers["Location"] == second.headers["Location"]
        assert first.json() == second.json()
        other = await client.post(EXPORTS, json={**SMALLEST, "version": 1}, headers=headers)
        check_problem(other, 422)
        assert [fault["field"] for fault in other.json()["errors"]] == ["Idempotency-Key"]
        wrong = await client.post(EXPORTS, json=SMALLEST, headers={"Idempotency-Key": ""})
        check_problem(wrong, 400)

    service.talk(conversation)
    assert len(queue.jobs) == len(service.pinned) == 1


def test_at_once_it_is_the_same_job_too(service, queue):
    async def conversation(client):
        headers = {"Idempotency-Key": '"once"'}
        answers = await asyncio.gather(*(client.post(EXPORTS, json=SMALLEST, headers=headers) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1

    service.talk(conversation)
    assert len(queue.jobs) == 1


def test_many_at_once_get_a_version_each(service, queue):
    async def conversation(client):
        answers = await asyncio.gather(*(client.post(EXPORTS, json=SMALLEST) for _ in range(8)))
        assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 9))

    service.talk(conversation)


def test_keys_of_two_who_ask_do_not_meet(make_service, queue):
    from attnserve.service.keys import write_entry

    entries = "\n".join(write_entry(name, f"secret-of-{name}", ["admin"]) for name in DIGESTS)
    service = make_service(keys=entries)

    async def conversation(client):
        ids = []
        for name in DIGESTS:
            headers = {"X-Api-Key": f"secret-of-{name}", "Idempotency-Key": '"once"'}
            answer = await client.post(EXPORTS, json=SMALLEST, headers=headers)
            assert answer.json()["key"] == name
            ids.append(answer.json()["id"])
        assert len(set(ids)) == 2

    service.talk(conversation)


def test_the_list_is_in_pages(service, queue):
    for number in range(5):
        queue.put(number, state="failed" if number % 2 else "queued")

    async def conversation(client):
        page = (await client.get(EXPORTS, params={"limit": 3})).json()
        ExportList.model_validate(page, strict=True)
        assert [job["id"] for job in page["exports"]] == [job_id(4), job_id(3), job_id(2)]
        rest = (await client.get(EXPORTS, params={"limit": 3, "after": page["next"]})).json()
        assert [job["id"] for job in rest["exports"]] == [job_id(1), job_id(0)]
        assert rest["next"] is None
        failed = (await client.get(EXPORTS, params={"state": "failed", "model": "tiny"})).json()
        assert [job["id"] for job in failed["exports"]] == [job_id(3), job_id(1)]
        check_problem(await client.get(EXPORTS, params={"limit": 0}), 422)

    service.talk(conversation)


def test_a_job_is_shown_with_its_log(service, queue):
    queue.put(1, state="running", worker="w")
    queue.say(1, *LINES)
    document = service.ask("GET", f"{EXPORTS}/{job_id(1)}").json()
    assert document == describe_job(queue.find(job_id(1)), queue.read_log(job_id(1), 0))
    assert [line["step"] for line in document["log"]] == ["fetch", "load", "graph"]


@pytest.mark.parametrize("path", ["", "/events"])
@pytest.mark.parametrize("wrong", [job_id(7), "x", "..%2Fjobs", job_id(1).upper() + "x"])
def test_a_job_that_is_none_is_404(service, path, wrong):
    response = service.ask("GET", f"{EXPORTS}/{wrong}{path}")
    check_problem(response, 404)


def test_a_job_is_cancelled(service, queue):
    queue.put(1, state="running")
    queue.say(1, LINES[0])

    async def conversation(client):
        answer = await client.delete(f"{EXPORTS}/{job_id(1)}")
        assert answer.status_code == 200
        assert answer.json()["state"] == "cancelled"
        assert len(answer.json()["log"]) == 1
        # Nothing to cancel any more.
        again = await client.delete(f"{EXPORTS}/{job_id(1)}")
        assert check_problem(again, 409) == "id: expected a job that is queued or running, got one that was cancelled"
        check_problem(await client.delete(f"{EXPORTS}/{job_id(2)}"), 404)

    service.talk(conversation)


def test_a_job_that_ends_while_it_is_cancelled_has_ended(service, queue):
    queue.put(1, state="running")
    queue.cancel = lambda _: queue.succeed(1)
    check_problem(service.ask("DELETE", f"{EXPORTS}/{job_id(1)}"), 409)


def test_events_are_all_that_is_said_and_the_end(service, queue):
    queue.put(1, state="running")
    queue.say(1, *LINES)
    queue.succeed(1)
    response = service.ask("GET", f"{EXPORTS}/{job_id(1)}/events")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    *said, (last_id, name, job) = read_events(response)
    assert [(number, kind) for number, kind, _ in said] == [("0", "progress"), ("1", "progress"), ("2", "progress")]
    assert said[1][2] == {"step": "load", "fraction": 0.02, "message": "1 layer", "at": "2026-01-01T00:00:01Z"}
    assert (last_id, name, job["state"]) == ("end", "end", "succeeded")
    ExportJob.model_validate(job, strict=True)


def test_who_comes_again_sees_what_is_new(service, queue):
    queue.put(1, state="running")
    queue.say(1, *LINES)
    queue.succeed(1)

    async def conversation(client):
        async def look(seen):
            return await client.get(f"{EXPORTS}/{job_id(1)}/events", headers={"Last-Event-ID": seen})

        assert [number for number, _, _ in read_events(await look("1"))] == ["2", "end"]
        assert [number for number, _, _ in read_events(await look("2"))] == ["end"]
        # What tells a browser to ask no more.
        over = await look("end")
        assert (over.status_code, over.content) == (204, b"")
        check_problem(await look("x"), 400)

    service.talk(conversation)


def test_events_are_sent_as_they_come(service, serve_app, queue):
    queue.put(1, state="running")
    url = serve_app(service.app)
    with httpx.stream("GET", f"{url}{EXPORTS}/{job_id(1)}/events", timeout=60) as response:
        lines = response.iter_lines()
        for number, line in enumerate(LINES):
            queue.say(1, line)
            assert next(lines) == f"id: {number}"
            while next(lines):
                pass
        queue.succeed(1)
        assert next(lines) == "id: end"


def test_formats_that_are_no_events_are_406(service, queue):
    queue.put(1, state="succeeded")

    async def conversation(client):
        async def look(accept):
            return await client.get(f"{EXPORTS}/{job_id(1)}/events", headers={"Accept": accept})

        check_problem(await look("application/json"), 406)
        for accept in ("text/event-stream", "*/*", "text/*", "application/json, text/event-stream;q=0.5"):
            assert (await look(accept)).status_code == 200

    service.talk(conversation)


def test_head_streams_nothing(service, queue):
    queue.put(1, state="running")
    response = service.ask("HEAD", f"{EXPORTS}/{job_id(1)}/events")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")


def test_watchers_are_few(service, serve_app, queue):
    queue.put(1, state="running")
    queue.say(1, LINES[0])
    url = f"{serve_app(service.app)}{EXPORTS}/{job_id(1)}/events"
    with httpx.stream("GET", url, timeout=60) as one, httpx.stream("GET", url, timeout=60) as other:
        # Held: an iterator that is gone has closed its stream.
        lines = [response.iter_lines() for response in (one, other)]
        assert [next(each) for each in lines] == ["id: 0", "id: 0"]
        check_problem(httpx.get(url, timeout=60), 429)
        queue.succeed(1)


def test_a_service_about_to_stop_starts_no_stream(service, queue):
    queue.put(1, state="running")
    service.catalogue.is_draining = True
    check_problem(service.ask("GET", f"{EXPORTS}/{job_id(1)}/events"), 503)


ROUTES = [
    ("POST", EXPORTS),
    ("GET", EXPORTS),
    ("GET", f"{EXPORTS}/{job_id(1)}"),
    ("GET", f"{EXPORTS}/{job_id(1)}/events"),
    ("DELETE", f"{EXPORTS}/{job_id(1)}"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_database_that_is_down_is_503_everywhere(service, queue, method, path):
    queue.is_down = True
    response = service.ask(method, path, json=SMALLEST if method == "POST" else None)
    assert check_problem(response, 503) == "the database of export jobs does not answer"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_extra_all_routes_are_501(service, method, path):
    def open_queue():
        raise NotInstalled("exports need dbos, which this service runs without: pip install 'attnserve[jobs]'")

    service.client._open_queue = open_queue
    response = service.ask(method, path, json=SMALLEST if method == "POST" else None)
    assert "attnserve[jobs]" in check_problem(response, 501)


def test_others_are_answered_while_the_database_is_not(service, queue):
    release = threading.Event()
    queue.find_active = lambda: release.wait() and []

    async def conversation(client):
        waiting = [asyncio.create_task(client.post(EXPORTS, json=SMALLEST)) for _ in range(50)]
        for _ in range(10):
            assert (await client.get("/healthz")).status_code == 200
        assert not any(task.done() for task in waiting)
        release.set()
        await asyncio.gather(*waiting)

    service.talk(conversation)


def test_metrics_tell_of_the_queue(service, queue):
    queue.put(1)
    queue.put(2, state="running")
    text = service.ask("GET", "/metrics").text
    assert 'export_jobs{state="queued"} 1.0' in text
    assert 'export_jobs{state="running"} 1.0' in text
    assert "export_oldest_queued_seconds " in text


def test_metrics_come_without_a_queue(service, queue):
    queue.is_down = True
    response = service.ask("GET", "/metrics")
    assert response.status_code == 200
    assert "export_jobs{" not in response.text
