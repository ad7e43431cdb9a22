"""From a checkpoint to an answer over HTTP, on one machine: the service, and the worker that it starts itself."""

import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest

from attnserve.cli import main
from tests.conftest import Served, wait_for

pytestmark = [pytest.mark.http, pytest.mark.export]

FLAGS = ("--export-worker", "on", "--poll-seconds", "0.2")
PATIENCE_S = 300
QUESTION = {"sequences": [["a", "b", "c"]]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Nothing: there is no model before one is exported."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def served(repository, start_server):
    with start_server(repository, *FLAGS, ready=False) as started:
        yield started
        assert started.client.get("/healthz").status_code == 200
        family = list_family(started.process.pid)
        assert len(family) > 1
    assert started.process.returncode == 0
    assert not [process for process in family if Path(f"/proc/{process}").exists()]
    assert "Traceback" not in started.log.read_text()


def upload(served: Served, name: str, checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        response = served.client.put(f"/v1/checkpoints/{name}/{path.name}", content=path.read_bytes())
        assert response.status_code in (200, 201), response.text


def start(served: Served, **body) -> dict:
    response = served.client.post("/v1/exports", json={"checkpoint": "mine", "model": "tiny", **body})
    assert response.status_code == 202, response.text
    return response.json()


def follow(served: Served, job_id: str) -> list[tuple[str, dict]]:
    """Name and data of every event, to the end."""
    events, deadline = [], time.monotonic() + PATIENCE_S
    with httpx.stream("GET", f"{served.url}/v1/exports/{job_id}/events", timeout=120) as response:
        assert response.status_code == 200
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            # Comments come for as long as nothing else does.
            assert time.monotonic() < deadline, served.log.read_text()
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "data" in fields:
                events.append((fields["event"], json.loads(fields["data"])))
                fields = {}
    return events


def list_family(process: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    family = [process]
    for parent in family:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            family += [int(child) for child in task.read_text().split()]
    return family


def test_from_nothing_to_an_answer(served, checkpoint, repository):
    upload(served, "mine", checkpoint)
    job = start(served)
    assert (job["state"], job["version"], job["progress"]) == ("queued", 1, 0)
    *said, (last, ended) = follow(served, job["id"])
    assert {name for name, _ in said} == {"progress"}
    steps = list(dict.fromkeys(line["step"] for _, line in said))
    assert steps == ["fetch", "load", "graph", "golden", "verify", "publish", "activate"]
    assert last == "end"
    assert ended["state"] == "succeeded", ended
    assert ended["parity"]["logits"]["measured"] <= ended["parity"]["logits"]["allowed"]
    assert ended["table"]
    wait_for(served, "/readyz")
    answer = served.ask("predict", QUESTION)
    assert answer["version"] == 1
    manifest = served.client.get("/v1/models/tiny").json()
    assert manifest["provenance"]["checkpoint_sha256"] == ended["files"]
    assert [path.name for path in (repository / "tiny").iterdir() if path.name.startswith(".")] == []


def test_the_new_version_takes_over_without_a_lost_request(served, checkpoint):
    upload(served, "mine", checkpoint)
    over, versions, failures = threading.Event(), set(), []

    def ask():
        with httpx.Client(base_url=served.url, timeout=60) as client:
            while not over.is_set():
                response = client.post("/v1/models/tiny/predict", json=QUESTION)
                if response.status_code == 200:
                    versions.add(response.json()["version"])
                else:
                    failures.append(response.text)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        job = start(served, version=7)
        _, ended = follow(served, job["id"])[-1]
        assert ended["state"] == "succeeded", ended
        for _ in range(600):
            if 7 in versions:
                break
            over.wait(0.1)
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert not failures
    assert versions == {1, 7}


def test_the_command_pushes_exports_and_waits(served, checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("ATTNSERVE_URL", served.url)
    how = ["--portable", "--top-k", "3", "--follow"]
    assert main(["push", str(checkpoint), "--name", "pushed", "--export", "pushed/3", *how]) == 0
    assert capsys.readouterr().out.endswith("pushed/3 is published\npushed/3 answers\n")
    assert served.ask("predict", QUESTION, model="pushed")["version"] == 3
    assert served.client.get("/v1/models/pushed").json()["top_k"] == 3


def test_a_checkpoint_that_is_none_is_a_job_that_failed(served, checkpoint, tmp_path, capsys, monkeypatch):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size - 100)
    upload(served, "broken", tmp_path)
    job = start(served, checkpoint="broken", model="broken")
    *_, (_, ended) = follow(served, job["id"])
    assert (ended["state"], ended["step"]) == ("failed", "load")
    assert ended["reason"]
    assert served.client.get("/v1/models/broken").status_code == 404
    monkeypatch.setenv("ATTNSERVE_URL", served.url)
    assert main(["exports", "follow", job["id"]]) == 1
    assert ended["reason"] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no list of processes to look at")
def test_a_service_that_is_killed_takes_all_with_it_and_the_job_goes_on(checkpoint, start_server, tmp_path):
    repository, checkpoints = tmp_path / "repository", tmp_path / "checkpoints"
    repository.mkdir()
    # Of tests, each service has uploads and jobs of its own.
    flags = (*FLAGS, "--checkpoints", str(checkpoints), "--database-url", f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    with start_server(repository, *flags, ready=False) as first:
        upload(first, "mine", checkpoint)
        job = start(first)
        with httpx.stream("GET", f"{first.url}/v1/exports/{job['id']}/events", timeout=120) as response:
            next(line for line in response.iter_lines() if '"graph"' in line)
            family = list_family(first.process.pid)
        # The service, its worker, and what builds.
        assert len(family) >= 3
        first.process.kill()
        first.process.wait()
        while [process for process in family if is_running(process)]:
            os.sched_yield()
    with start_server(repository, *flags, ready=False) as second:
        *_, (_, ended) = follow(second, job["id"])
        assert ended["state"] == "succeeded", ended
        wait_for(second, "/readyz")
        assert second.ask("predict", QUESTION)["version"] == 1


def is_running(process: int) -> bool:
    """Whether it is there, and not only waiting to be taken notice of."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return re.match(r".*\) Z", status) is None
