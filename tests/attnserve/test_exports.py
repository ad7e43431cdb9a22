"""`attnserve exports` against the routes of a service, over a queue in memory."""

import json
from email.message import Message

import pytest

from attnserve.cli import main
from attnserve.jobs import Outcome
from attnserve.remote import Remote, Reply
from tests.fake_exports import LINES, PARITY, FakeQueue, Service, job_id, make_order

pytestmark = pytest.mark.http
ID = job_id(1)


@pytest.fixture
def queue():
    return FakeQueue()


@pytest.fixture
def url(queue, tmp_path, serve_app):
    return serve_app(Service(tmp_path, queue).app)


@pytest.fixture
def run(url, monkeypatch):
    monkeypatch.setenv("ATTNSERVE_URL", url)
    return lambda *arguments: main(["exports", *arguments])


def test_a_job_is_started_as_asked_for(run, queue, capsys):
    assert run("start", "mine", "tiny") == 0
    assert run("start", "mine", "tiny/7", "--precision", "float16", "--portable", "--top-k", "5", "--no-activate") == 0
    first, second = queue.jobs.values()
    assert first.order == make_order(version=1)
    assert second.order == make_order(version=7, precision="float16", portable=True, top_k=5, activate=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"export {first.id} of tiny/1", f"export {second.id} of tiny/7"]


@pytest.mark.parametrize("model", ["tiny/x", "tiny/0", "tiny/1/2", "../tiny", ""])
def test_what_the_service_refuses_is_one_line(run, capsys, model):
    assert run("start", "mine", model) == 1
    captured = capsys.readouterr()
    assert "422" in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_jobs_are_listed(run, queue, capsys):
    queue.put(1, state="running", progress=LINES[1])
    queue.put(2, state="failed")
    assert run("list") == 0
    newest, older = capsys.readouterr().out.splitlines()
    assert newest.split()[0] == job_id(2)
    assert older.split()[2:] == ["running", "2%", "tiny/2"]
    assert run("list", "--state", "failed", "--model", "tiny", "--limit", "1", "--json") == 0
    assert [job["id"] for job in json.loads(capsys.readouterr().out)["exports"]] == [job_id(2)]


def test_a_job_is_shown(run, queue, capsys):
    queue.put(1, state="running", worker="build-1")
    queue.say(1, *LINES)
    assert run("show", ID) == 0
    out = capsys.readouterr().out
    assert "worker     build-1" in out
    assert "graph      traced" in out
    assert out.endswith("running    5%\n")
    assert run("show", ID, "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "running"


def test_a_job_that_is_none_is_one_line(run, capsys):
    for action in ("show", "follow", "cancel"):
        assert run(action, "x?state=failed") == 1
        assert "404 id: expected the id of an export, got 'x?state=failed'" in capsys.readouterr().err


def test_a_job_is_cancelled_once(run, queue, capsys):
    queue.put(1)
    assert run("cancel", ID) == 0
    assert capsys.readouterr().out == f"export {ID} of tiny/2 was cancelled\n"
    assert run("cancel", ID) == 1
    assert "409" in capsys.readouterr().err


def test_following_ends_with_the_parity(run, queue, capsys):
    queue.put(1, state="running", order=make_order(activate=False))
    queue.say(1, *LINES)
    queue.succeed(1)
    assert run("follow", ID) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "fetch      2 files",
        "load       1 layer",
        "graph      traced",
        *PARITY.table.splitlines(),
        "onnx ReferenceEvaluator, logits: 3.0e-06",
        "tiny/2 is published",
    ]
    assert not captured.err


def test_following_one_that_fails_ends_with_the_reason(run, queue, capsys):
    outcome = Outcome(state="failed", step="verify", reason="not equal to PyTorch", report="length 1: 3.0e-01")
    queue.put(1, state="failed", outcome=outcome)
    assert run("follow", ID) == 1
    captured = capsys.readouterr()
    assert captured.out == "length 1: 3.0e-01\n"
    assert captured.err == "attnserve: the export of tiny/2 failed in step verify: not equal to PyTorch\n"


def test_following_one_that_is_cancelled_fails(run, queue, capsys):
    queue.put(1, state="cancelled")
    assert run("follow", ID) == 1
    assert capsys.readouterr().err == "attnserve: the export of tiny/2 was cancelled\n"


def test_something_else_that_answers_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr(Remote, "ask", lambda *_, **__: Reply(status=200, headers=Message(), body=b""))
    for arguments in (("list",), ("show", ID), ("cancel", ID), ("start", "mine", "tiny")):
        assert run(*arguments) == 1
        assert capsys.readouterr().err == (
            "attnserve: --url: expected a service of attnserve, got an answer of something else\n"
        )


@pytest.mark.parametrize(
    "option", [["--follow"], ["--portable"], ["--no-activate"], ["--precision", "int8"], ["--top-k", "5"]]
)
def test_pushing_has_options_of_an_export_with_one_only(tmp_path, capsys, option):
    assert main(["push", str(tmp_path), "--name", "mine", *option]) == 1
    assert capsys.readouterr().err == f"attnserve: {option[0]}: expected together with --export, got it alone\n"


def test_without_a_service_it_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setenv("ATTNSERVE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("attnserve.following.RETRY_S", 0)
    for arguments in (("list",), ("follow", ID), ("start", "mine", "tiny")):
        assert run(*arguments) == 1
        assert capsys.readouterr().err.startswith("attnserve: --url: expected a service at http://127.0.0.1:1")
