"""The whole stack of docker-compose.yml, built and started once, with keys and secrets of its own."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "attnserve-test"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running stack."""

    environment: dict[str, str]
    client: httpx.Client
    """Asks the gateway, with a key of all scopes."""

    def compose(self, *words: str, check: bool = True) -> str:
        """`docker compose` on this stack; returns what it wrote to stdout."""
        files = ("-f", "docker-compose.yml", "-f", "tests/compose/override.yml")
        command = ["docker", "compose", "--project-name", PROJECT, *files, *words]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=1800)
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def up(self, num_services: int) -> None:
        """Start what is not running, and come back when all of it is healthy."""
        self.compose("up", "-d", "--wait", "--no-recreate", "--scale", f"service={num_services}")

    def containers(self, service: str) -> list[str]:
        """Ids of the running containers of a service."""
        return self.compose("ps", "--quiet", "--status", "running", service).split()

    def python(self, service: str, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a container, as its user."""
        command = ["docker", "exec", self.containers(service)[0], "python", "-c", code]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def requests_by_container(self, route: str) -> dict[str, int]:
        """How many requests of a route each container of `service` has logged."""
        counts = {}
        for container in self.containers("service"):
            done = subprocess.run(
                ["docker", "logs", container], env=self.environment, capture_output=True, text=True, timeout=60
            )
            lines = (json.loads(line) for line in done.stderr.splitlines() if line.startswith("{"))
            counts[container] = sum(line.get("route") == route for line in lines)
        return counts

    def export(self, checkpoint: Path, model: str) -> None:
        """Upload a checkpoint, have it exported, and wait until it is published."""
        for file in sorted(checkpoint.iterdir()):
            put = self.client.put(f"/v1/checkpoints/{model}/{file.name}", content=file.read_bytes())
            assert put.status_code in (200, 201), put.text
        asked = self.client.post("/v1/exports", json={"checkpoint": model, "model": model})
        assert asked.status_code == 202, asked.text
        job = wait_for(lambda: self._ended(asked.headers["Location"]), seconds=600)
        assert job["state"] == "succeeded", job

    def _ended(self, location: str) -> Any:
        job = self.client.get(location).json()
        return job if job["state"] in ("succeeded", "failed", "cancelled") else None


def wait_for(find: Any, *, seconds: float) -> Any:
    """The first thing found; fails when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = find()
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"not found within {seconds} s")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three services behind the gateway, nothing in the repository."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "postgres-password").write_text(secrets.token_hex(16))
    (folder / "grafana-password").write_text(secrets.token_hex(16))
    key, metrics_key = _mint(folder, "tester", "predict,attention,admin"), _mint(folder, "prometheus", "")
    (folder / "metrics-key").write_text(metrics_key)
    for file in folder.iterdir():
        # Containers read them as users of their own.
        file.chmod(0o644)
    folder.chmod(0o755)
    port = free_port()
    (folder / "wheels").mkdir()
    environment = os.environ | {
        "PORT": str(port),
        "SECRETS": str(folder),
        "KEYS_FILE": str(folder / "keys.yaml"),
        "METRICS_KEY_FILE": str(folder / "metrics-key"),
        "ALLOW_ANONYMOUS": "false",
        "SERVICE_THREADS": "1",
        "WHEELS": os.environ.get("PIP_FIND_LINKS", str(folder / "wheels")),
        "COMPOSE_ANSI": "never",
    }
    if "PIP_FIND_LINKS" in os.environ:
        environment["TORCH_INDEX"] = ""
    headers = {"X-Api-Key": key}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
        stack = Stack(environment=environment, client=client)
        stack.compose("build")
        try:
            stack.up(3)
            yield stack
        except BaseException:
            print(stack.compose("logs", "--no-color", "--tail", "200", check=False), file=sys.stderr)
            raise
        finally:
            stack.compose("down", "--volumes", "--timeout", "5")


def _mint(folder: Path, name: str, scopes: str) -> str:
    command = [sys.executable, "-m", "attnserve", "key", name, "--scopes", scopes, "--file", str(folder / "keys.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
