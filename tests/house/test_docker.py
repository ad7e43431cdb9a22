"""The Dockerfile, the compose file and the gateway, as far as that goes without running them."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
DEFAULT = {name: service for name, service in SERVICES.items() if "profiles" not in service}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def has_compose() -> bool:
    return shutil.which("docker") is not None and run("docker", "compose", "version").returncode == 0


def find_hadolint() -> str | None:
    return shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(not has_compose(), reason="docker compose is not installed")
@pytest.mark.parametrize("files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml")])
def test_compose_files_are_valid(files):
    done = run("docker", "compose", *(f"--file={file}" for file in files), "config", "--quiet")
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
    published = [port for service in DEFAULT.values() for port in service.get("ports", [])]
    assert published == ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_can_write_nothing_and_gain_nothing(name):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]


def test_only_the_gateway_leaves_the_private_network():
    assert COMPOSE["networks"]["private"]["internal"]
    assert [name for name, service in DEFAULT.items() if service["networks"] != ["private"]] == ["gateway"]


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in ("service", "worker")])
def test_images_are_pinned(name):
    assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/]+:v?\d+\.\d+(\.\d+)?\}", SERVICES[name]["image"])


def test_secrets_are_files():
    """A password in a variable is in `docker inspect`, and in whatever prints its environment."""
    variables = [
        variable
        for service in SERVICES.values()
        for variable in service.get("environment", {})
        if re.search("PASSWORD|SECRET|TOKEN", variable)
    ]
    assert variables
    assert all(variable.endswith("_FILE") for variable in variables)


def test_every_variable_is_explained():
    used = set(re.findall(r"\$\{([A-Z_]+)", TEXT + (ROOT / "docker-compose.gpu.yml").read_text("utf-8")))
    explained = set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    assert used - explained == {"GPUS"}
    assert explained - used == set()


def test_examples_of_variables_are_their_defaults():
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]+)\}", TEXT))
    shown = dict(re.findall(r"^# ([A-Z_]+)=(.+)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    # What is a file where it is set is nothing where it is not.
    compared = {name for name, default in defaults.items() if default not in ("/dev/null", "true")}
    assert {name: shown[name] for name in compared} == {name: defaults[name] for name in compared}


@pytest.mark.parametrize("path", ["prometheus/rules.yml", "grafana/dashboards/attnserve.json"])
def test_no_expression_asks_for_a_metric_that_nobody_has(path):
    known = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/metrics.md").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"\b(?:inference|model|export|attention|gpu)_[a-z_]+", (ROOT / path).read_text("utf-8")))
    assert named
    assert {re.sub("_(count|sum|bucket)$", "", name) for name in named} <= known


def test_dashboard_is_whole():
    dashboard = json.loads((ROOT / "grafana/dashboards/attnserve.json").read_text("utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = Counter()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells.update(itertools.product(columns, rows))
        if panel["type"] != "row":
            assert panel["description"]
            assert all(target["datasource"]["uid"] == "prometheus" for target in panel["targets"])
    assert set(cells.values()) == {1}
