"""What /openapi.json promises and forbids, as schemathesis reads it: a short run of `python -m soak --only schema`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.http

ROOT = Path(__file__).resolve().parents[2]
# 50 examples for every operation.
SCALE = "0.1"


def test_bodies_that_may_be_left_out_are_not_required(server):
    paths = server.client.get("/openapi.json").json()["paths"]
    bodies = {path: item["post"]["requestBody"] for path, item in paths.items() if "post" in item}
    optional = {path for path, body in bodies.items() if not body["required"]}
    assert optional == {path for path in bodies if path.startswith("/v2/repository/")}
    assert server.client.post("/v2/repository/index").status_code == 200


@pytest.mark.slow
@pytest.mark.export
def test_schemathesis_finds_nothing(committed_bundles, tmp_path):
    for name in ("nt-dot-product", "nt-elliptical", "nt-expressive"):
        shutil.copytree(committed_bundles / name, tmp_path / "repository" / name)
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "soak", "--only", "schema", "--scale", SCALE, "--json", str(report)]
    # From the root, where soak is: it is no part of the package.
    done = subprocess.run(
        [*command, "--repository", str(tmp_path / "repository")], cwd=ROOT, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(report.read_text("utf-8"))["reports"]["schema"]["figures"]
    assert figures["status 200"] > 100
