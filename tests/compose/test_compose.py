"""What docker-compose.yml promises, with a real engine. In this order: what is started once is not started twice."""

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.compose.conftest import Stack, wait_for

pytestmark = [pytest.mark.compose, pytest.mark.slow]
QUESTION = {"sequences": [[3, 1, 4, 1, 5]]}
PREDICT, ROUTE = "/v1/models/tiny/predict", "/v1/models/{model}/predict"
CAPTURES = "/v1/models/{model}/captures"


class Load:
    """Clients that ask all the time, one question after the other."""

    def __init__(self, stack: Stack, num_clients: int = 8) -> None:
        self.answers: Counter[Any] = Counter()
        self._stack = stack
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, num_answers: int) -> None:
        """Come back when so many more were answered."""
        wanted = self.answers.total() + num_answers
        wait_for(lambda: self.answers.total() >= wanted, seconds=120)

    def _ask(self) -> None:
        headers = dict(self._stack.client.headers)
        with httpx.Client(base_url=self._stack.client.base_url, headers=headers, timeout=60) as client:
            while not self._stop.is_set():
                try:
                    answer: Any = client.post(PREDICT, json=QUESTION).status_code
                except httpx.TransportError as error:
                    answer = repr(error)
                with self._lock:
                    self.answers[answer] += 1


def test_nothing_in_the_repository_is_not_ready_and_takes_uploads(stack):
    assert stack.client.get("/healthz").status_code == 200
    assert stack.client.get("/readyz").status_code == 503
    assert stack.client.post(PREDICT, json=QUESTION).status_code == 503
    assert stack.client.get("/v1/models").json() == {"models": []}


def test_an_uploaded_checkpoint_is_exported_and_answered_by_every_replica(stack, checkpoint):
    stack.export(checkpoint, "tiny")
    wait_for(lambda: _num_ready(stack) == 3, seconds=60)
    before = stack.requests_by_container(ROUTE)
    for _ in range(60):
        assert stack.client.post(PREDICT, json=QUESTION).status_code == 200
    after = stack.requests_by_container(ROUTE)
    assert sorted(after[container] - before[container] for container in after) == [20, 20, 20]


def test_what_is_asked_of_a_capture_finds_the_replica_that_made_it(stack):
    before = stack.requests_by_container(CAPTURES)
    paths = []
    for _ in range(12):
        made = stack.client.post("/v1/models/tiny/captures", json=QUESTION)
        assert made.status_code == 201, made.text
        paths.append(f"/v1/captures/{made.json()['id']}")
    for path in paths * 2:
        assert stack.client.get(path).status_code == 200
        assert stack.client.get(f"{path}/rows/0/0").status_code == 200
    after = stack.requests_by_container(CAPTURES)
    # By chance all twelve are in one replica once in 177,147 runs.
    assert sum(after[container] > before[container] for container in after) > 1


def test_no_key_no_answer(stack):
    with httpx.Client(base_url=stack.client.base_url) as stranger:
        assert stranger.post(PREDICT, json=QUESTION).status_code == 401
        assert stranger.put("/v1/checkpoints/tiny/config.json", content=b"{}").status_code == 401


def test_prometheus_sees_every_replica_and_the_gateway(stack):
    def targets() -> Any:
        found = _ask_prometheus(stack, "/api/v1/targets")["activeTargets"]
        jobs = Counter(target["labels"]["job"] for target in found if target["health"] == "up")
        return jobs == {"service": 3, "gateway": 1}

    wait_for(targets, seconds=60)
    groups = _ask_prometheus(stack, "/api/v1/rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    # Not what a replica, chosen by chance, has counted.
    assert stack.client.get("/metrics").status_code == 404


@pytest.mark.parametrize("service", ["service", "worker"])
def test_containers_are_nobody_and_write_nowhere(stack, service):
    assert stack.python(service, "import os; print(os.getuid())").stdout == "10001\n"
    assert "Read-only file system" in stack.python(service, "open('/venv/x', 'w')").stderr
    assert "Read-only file system" in stack.python(service, "open('/x', 'w')").stderr


def test_the_service_cannot_import_torch(stack):
    done = stack.python("service", "import torch")
    assert "ModuleNotFoundError" in done.stderr
    assert stack.python("worker", "import torch").returncode == 0


def test_replicas_die_stall_come_and_go_without_a_lost_prediction(stack):
    with Load(stack) as load:
        load.go_on(100)
        killed, stalled = (_pid(stack, container) for container in stack.containers("service")[:2])
        # From outside: a container that Docker kills stays dead, and one that it pauses may not come back while its
        # health is being asked for.
        os.kill(killed, signal.SIGKILL)
        load.go_on(100)
        os.kill(stalled, signal.SIGSTOP)
        load.go_on(100)
        os.kill(stalled, signal.SIGCONT)
        stack.up(5)
        load.go_on(100)
        stack.up(2)
        load.go_on(100)
    assert set(load.answers) == {200}, _explain(stack, load)
    assert len(stack.containers("service")) == 2


def test_a_new_version_is_swapped_in_everywhere_without_a_lost_prediction(stack, checkpoint):
    with Load(stack, 2) as load:
        stack.export(checkpoint, "tiny")
        wait_for(lambda: _versions(stack) == {2}, seconds=60)
    assert set(load.answers) == {200}, _explain(stack, load)


def test_jobs_models_and_keys_outlive_the_containers(stack):
    jobs = stack.client.get("/v1/exports").json()
    stack.compose("down", "--timeout", "10")
    stack.up(2)
    assert wait_for(lambda: stack.client.get("/readyz").status_code == 200, seconds=60)
    assert stack.client.get("/v1/exports").json() == jobs
    assert stack.client.post(PREDICT, json=QUESTION).status_code == 200
    assert "tiny" in json.dumps(stack.client.get("/v1/checkpoints").json())


def _explain(stack: Stack, load: Load) -> str:
    """What was answered, and what the gateway says of what went wrong."""
    lines = stack.compose("logs", "--no-color", "--no-log-prefix", "gateway").splitlines()
    wrong = [line for line in lines if "/predict" not in line or " 200 " not in line]
    return "\n".join([str(load.answers), *wrong[-200:]])


def _num_ready(stack: Stack) -> int:
    """How many replicas would answer predictions, as the gateway sees it."""
    code = "import urllib.request as u; print(u.urlopen('http://gateway:8404/;csv').read().decode())"
    lines = stack.python("service", code).stdout.splitlines()
    return sum(line.startswith("predict,service") and ",UP," in line for line in lines)


def _versions(stack: Stack) -> set[int]:
    """Versions that a number of predictions came from: enough for every replica to be among them."""
    return {stack.client.post(PREDICT, json=QUESTION).json()["version"] for _ in range(12)}


def _ask_prometheus(stack: Stack, path: str) -> Any:
    code = f"import urllib.request as u; print(u.urlopen('http://prometheus:9090{path}').read().decode())"
    return json.loads(stack.python("service", code).stdout)["data"]


def _docker(stack: Stack, *words: str) -> str:
    done = subprocess.run(["docker", *words], env=stack.environment, capture_output=True, text=True, check=True)
    return done.stdout


def _pid(stack: Stack, container: str) -> int:
    return int(_docker(stack, "inspect", "--format", "{{.State.Pid}}", container))
