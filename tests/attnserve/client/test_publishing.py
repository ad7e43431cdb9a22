"""Uploads and exports from Python: what became of them, and how far they are."""

import json

import pytest

from attnserve.client import Client, ExportError, Progress
from attnserve.jobs import Outcome
from tests.fake_exports import LINES, PARITY, FakeQueue, Service, make_order

pytestmark = pytest.mark.http

SUCCESS = Outcome(state="succeeded", parity=PARITY)
FILES = {"config.json": "{}", "model.safetensors": "weights" * 1000}


@pytest.fixture
def queue():
    return FakeQueue()


@pytest.fixture
def service(queue, tmp_path):
    (tmp_path / "service").mkdir()
    return Service(tmp_path / "service", queue)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file, content in FILES.items():
        (folder / file).write_text(content)
    return folder


@pytest.fixture
def client(service, serve_app):
    with Client(serve_app(service.app)) as client:
        yield client


def end_at_once(queue: FakeQueue, outcome: Outcome) -> None:
    """Jobs are over as soon as they are asked for."""
    add = queue.add

    def add_and_end(job_id, order, **options):
        add(job_id, order, **options)
        queue.lines[job_id] = list(LINES)
        queue.change(job_id, state=outcome.state, outcome=outcome, ended_ms=1_700_000_001_000)

    queue.add = add_and_end


def test_a_folder_is_pushed_and_says_how_far_it_is(client, folder, service):
    told: list[Progress] = []
    pushed = client.push(folder, report=told.append)
    assert (pushed.name, pushed.uploaded, pushed.removed) == ("mine", ("config.json", "model.safetensors"), ())
    stored = service.app.state.uploads.checkpoints.folder / "mine"
    assert {path.name: path.read_text() for path in stored.iterdir()} == FILES
    for step in ("hash", "push"):
        fractions = [each.fraction for each in told if each.step == step]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
    assert {each.message for each in told} == {"mine"}
    # What is there already is not sent again.
    (folder / "config.json").write_text(json.dumps({"width": 8}))
    assert client.push(folder, "mine").uploaded == ("config.json",)


def test_an_export_is_followed_to_its_end(client, queue):
    end_at_once(queue, SUCCESS)
    told: list[Progress] = []
    export = client.export("mine", "tiny", precision="float16", top_k=5, activate=False, report=told.append)
    assert (export.model, export.version, export.table) == ("tiny", 1, PARITY.table)
    assert told == [Progress(step=each.step, message=each.message, fraction=each.fraction) for each in LINES]
    (job,) = queue.jobs.values()
    assert job.order == make_order(version=1, precision="float16", top_k=5, activate=False)
    assert export.job["id"] == export.id == job.id


def test_an_export_that_fails_says_why(client, queue):
    end_at_once(queue, Outcome(state="failed", step="verify", reason="not equal to PyTorch", report="1e-1"))
    with pytest.raises(ExportError) as caught:
        client.export("mine", "tiny", 3)
    assert str(caught.value) == "the export of tiny/3 failed in step verify: not equal to PyTorch"
    assert caught.value.job["report"] == "1e-1"


def test_an_export_that_is_cancelled_is_none(client, queue):
    end_at_once(queue, Outcome(state="cancelled"))
    with pytest.raises(ExportError) as caught:
        client.export("mine", "tiny")
    assert str(caught.value) == "the export of tiny/1 was cancelled"


def test_it_waits_until_the_model_answers(queue, service, serve_app, monkeypatch):
    end_at_once(queue, SUCCESS)
    waits = []
    monkeypatch.setattr("attnserve.following.MAX_LOOKS", 3)
    with Client(serve_app(service.app), wait=waits.append) as client, pytest.raises(ExportError) as caught:
        client.export("mine", "tiny")
    assert str(caught.value) == "tiny/1 is published, and does not answer: the service has not noticed it"
    assert len(waits) == 3
