"""`attnserve bench --url`: the whole command, against apps that behave as the test says and against the real one."""

import asyncio
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import termios
import threading

import pytest

from attnserve.cli import main
from tests.conftest import free_port

pytestmark = pytest.mark.http

DESCRIPTION = {
    "name": "m",
    "version": 1,
    "ready": True,
    "task": "next_token",
    "limits": {"max_length": 100},
    "vocabulary_size": 10,
    "num_features": None,
}
SHORTLY = ("--duration", "0.4", "--warmup", "0.1", "--rate", "100", "--arrivals", "constant")


@pytest.fixture(autouse=True)
def limits():
    """The command raises the limit of open files, of this process here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Stub:
    """Describes a model, and answers predictions with the given statuses in turn; None is never."""

    def __init__(self, *statuses, description=DESCRIPTION, described=200):
        self.statuses = itertools.cycle(statuses)
        self.description = json.dumps(description).encode()
        self.described = described
        self.paths = []
        self.headers = []
        self.bodies = []
        self.asked = threading.Event()

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        self.headers.append(dict(scope["headers"]))
        if scope["method"] == "GET":
            await self.answer(send, self.described, self.description)
            return
        message = {"more_body": True, "body": b""}
        body = b""
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        self.bodies.append(json.loads(body))
        self.asked.set()
        status = next(self.statuses)
        if status is None:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await self.answer(send, status, b"{}")

    async def answer(self, send, status, body):
        headers = [(b"content-length", str(len(body)).encode()), (b"server-timing", b"queue;dur=1.5, compute;dur=2")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def bench(url, *words, model="m"):
    return main(["bench", "--url", url, "--model", model, *words])


def test_a_load_from_its_first_question_to_its_report(serve_app, tmp_path, capsys):
    stub, path = Stub(200, 200, 200, 429), tmp_path / "figures.json"
    words = ("--sequences", "2", "--lengths", "3", "--deadline-ms", "60000", "--api-key", "secret", "--json", str(path))
    assert bench(serve_app(stub), *SHORTLY, *words) == 0
    assert stub.paths == ["/v1/models/m", *["/v1/models/m/predict"] * 50]
    assert {headers[b"authorization"] for headers in stub.headers} == {b"Bearer secret"}
    assert {headers.get(b"timeout-ms") for headers in stub.headers[1:]} == {b"60000.0"}
    assert {tuple(map(len, body["sequences"])) for body in stub.bodies} == {(3, 3)}
    figures = json.loads(path.read_text())
    assert figures["num_offered"] == 40
    assert figures["offered_per_s"] == pytest.approx(100)
    assert figures["num_answered"] == figures["num_within_deadline"] == figures["statuses"]["200"]
    assert figures["statuses"]["200"] + figures["statuses"]["429"] == 40
    assert figures["errors"] == {}
    assert figures["server_ms"]["queue"]["p99"] == 1.5
    assert figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"]
    assert figures["interrupted"] is False
    shown = capsys.readouterr()
    assert shown.out.startswith("m version 1 (next_token) at http://127.0.0.1:")
    for name in ("offered", "goodput", "status 429", "latency of 200", "compute", "lag"):
        assert name in shown.out
    # No terminal, no progress bar.
    assert shown.err == ""
    assert "secret" not in path.read_text() + shown.out


def test_a_server_that_does_not_answer_ends_the_run(serve_app, tmp_path):
    path = tmp_path / "figures.json"
    assert bench(serve_app(Stub(None)), *SHORTLY, "--timeout-s", "0.3", "--json", str(path)) == 0
    figures = json.loads(path.read_text())
    assert sum(figures["errors"].values()) == figures["num_offered"] == 40
    # On a machine that stands still at that moment, some are late before they are sent.
    assert set(figures["errors"]) <= {"timeout", "unsent"}
    assert figures["latency_ms"] is None


def test_a_closed_loop(serve_app, tmp_path):
    stub, path = Stub(200), tmp_path / "figures.json"
    words = ("--closed", "3", "--duration", "0.3", "--warmup", "0", "--lengths", "1-5", "--json", str(path))
    assert bench(serve_app(stub), *words) == 0
    figures = json.loads(path.read_text())
    assert figures["statuses"] == {"200": len(stub.bodies)}
    assert figures["lag_ms"] is None


def test_the_real_service(server, tmp_path, capsys):
    path = tmp_path / "figures.json"
    words = ("--sequences", "2", "--lengths", "lognormal:100:2", "--json", str(path))
    assert bench(server.url, *SHORTLY, *words, model="tiny") == 0
    figures = json.loads(path.read_text())
    assert figures["target"]["max_length"] == 320
    assert figures["lengths"]["longest"] == 320
    assert figures["lengths"]["num_cut"] > 0
    assert figures["statuses"] == {"200": 40}
    assert f"{figures['lengths']['num_cut']} cut to what the model takes" in capsys.readouterr().out


def test_no_such_model(server, capsys):
    assert bench(server.url, model="nope") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(
        f"attnserve: --model: expected one that {server.url} serves, got 404 model: expected one"
    )
    assert shown.err.count("\n") == 1


def test_no_server(capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert bench(url) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"attnserve: --url: expected a server at {url}, got: ")
    assert shown.err.count("\n") == 1


REFUSED = {
    "key": ({"described": 401}, "--api-key: expected one that {url} accepts, got 401"),
    "elsewhere": ({"described": 404}, "--url: expected a description of m, got 404 from {url}/v1/models/m"),
    "no model": ({"description": [1]}, "--url: expected attnserve's description of m, "),
    "not ready": (
        {"description": {"ready": False, "reason": "why"}},
        "--model: expected a model that is ready, got m: why",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_who_is_no_such_model_is_named_before_the_load(serve_app, name, capsys):
    options, said = REFUSED[name]
    stub = Stub(200, **options)
    url = serve_app(stub)
    assert bench(url) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("attnserve: " + said.format(url=url))
    assert shown.err.count("\n") == 1
    assert stub.bodies == []


def test_a_server_that_does_not_even_describe(serve_app, capsys):
    async def silent(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)

    url = serve_app(silent)
    assert bench(url, "--timeout-s", "0.2") == 1
    assert capsys.readouterr().err == f"attnserve: --url: expected an answer within 0.2 s, got none from {url}\n"


@pytest.mark.parametrize(
    ("warmup", "shown", "said"),
    [
        ("0", "interrupted", "attnserve: bench was interrupted\n"),
        (
            "50",
            "",
            "interrupted before the warm-up was over: nothing was measured\nattnserve: bench was interrupted\n",
        ),
    ],
)
def test_interrupted_it_prints_what_was_measured(serve_app, warmup, shown, said):
    stub = Stub(None)
    words = ["bench", "--url", serve_app(stub), "--model", "m", "--duration", "50", "--rate", "50", "--warmup", warmup]
    process = subprocess.Popen(
        [sys.executable, "-m", "attnserve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever runs the tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert stub.asked.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, said)
    assert bool(out) == bool(shown)
    assert shown in out


@pytest.mark.parametrize("flags", [[], ["--quiet"]])
def test_a_terminal_has_a_progress_bar(serve_app, flags):
    words = ["bench", "--url", serve_app(Stub(200)), "--model", "m", *SHORTLY, *flags]
    ours, theirs = os.openpty()
    # A new one has no columns, so no room for a bar.
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-m", "attnserve", *words], stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    drawn = b""
    with process, open(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                piece = terminal.read(1024)
            except OSError:
                # Linux says so when the last writer is gone, others return nothing.
                break
            if not piece:
                break
            drawn += piece
    assert process.returncode == 0
    assert (b"50/50" in drawn) == (not flags)
    assert bool(drawn) == (not flags)
