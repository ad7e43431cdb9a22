"""The Dockerfile, the compose file and the gateway, as far as that goes without running them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def has_compose() -> bool:
    return shutil.which("docker") is not None and run("docker", "compose", "version").returncode == 0


def find_hadolint() -> str | None:
    return shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(not has_compose(), reason="docker compose is not installed")
def test_compose_file_is_valid():
    done = run("docker", "compose", "config", "--quiet")
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.skipif(find_hadolint() is None, reason="hadolint is not installed")
def test_dockerfile_is_clean():
    done = run(find_hadolint(), "Dockerfile")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
def test_gateway_configuration_is_valid_without_warnings():
    done = run("haproxy", "-c", "-dW", "-f", "gateway/haproxy.cfg")
    assert done.returncode == 0, done.stderr


def test_one_port_is_published_and_only_on_this_machine():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:${PORT:-8000}:8000"]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_can_write_nothing_and_gain_nothing(name):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_services_may_listen_to_the_gateway_and_to_nobody_else():
    environment = SERVICES["service"]["environment"]
    assert environment["ATTNSERVE_ALLOW_ANONYMOUS"] == "true"
    assert SERVICES["service"]["networks"] == ["private"]
    assert COMPOSE["networks"]["private"]["internal"]


def test_keys_are_a_few_lines_away():
    """As the comments of the file say: the commented lines, and not the one above them."""
    lines = [line for line in TEXT.splitlines() if "ATTNSERVE_ALLOW_ANONYMOUS" not in line]
    commented = re.compile(r"^( *)# ((?:  )?(?:ATTNSERVE_KEYS_FILE|secrets|keys): ?.*)$")
    uncommented = [commented.sub(r"\1\2", line) for line in lines]
    document = yaml.safe_load("\n".join(uncommented))
    service = document["services"]["service"]
    assert service["environment"]["ATTNSERVE_KEYS_FILE"] == "/run/secrets/keys"
    assert service["secrets"] == ["keys"]
    assert document["secrets"] == {"keys": {"file": "./keys.yaml"}}


def test_repository_is_read_only():
    (volume,) = SERVICES["service"]["volumes"]
    assert volume["target"] == "/repository"
    assert volume["read_only"]
