"""What is printed is what the committed models answer: README's blocks, run in order, docs/api.md and OpenAPI."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def committed(start_server: Any, committed_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # A copy: README exports to it.
    repository = shutil.copytree(committed_bundles, tmp_path_factory.mktemp("readme") / "repository")
    with start_server(repository, "--export-worker", "on") as served:
        yield served


def test_quick_start_names_the_two_commands() -> None:
    (console,) = (text for language, text in BLOCKS if language == "console")
    assert re.findall(r"^\$ (make \w+)", console, re.MULTILINE) == ["make serve", "make test"]


@pytest.mark.slow
@pytest.mark.http
@pytest.mark.export
def test_blocks_run_and_answers_are_as_printed(committed: Served, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    run = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for language, text in BLOCKS:
        if language == "json":
            assert_close(json.loads(printed), json.loads(text))
        elif language == "text":
            assert checked_lines(printed) == checked_lines(text)
        elif language in run:
            assert ADDRESS in text or "curl" not in text
            command = [*run[language], text.replace(ADDRESS, committed.url)]
            process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert process.returncode == 0, f"{text}\n{process.stdout}{process.stderr}"
            printed = process.stdout
            if "curl" in text:
                assert {"predictions", "continuations"} & json.loads(printed).keys(), printed


def checked_lines(printed: str) -> list[str]:
    """What `attnserve doctor` looks at, and its verdict; what it finds is of the machine."""
    looked_at, _, verdict = printed.partition("\n\n")
    names = [line.partition("  ")[0] for line in looked_at.splitlines() if not line.startswith(" ")]
    return [*names, verdict.splitlines()[0]]


@pytest.mark.http
@pytest.mark.export
@pytest.mark.parametrize("name", ["api.md", "attention-api.md"])
def test_answers_of_the_api_pages_are_as_printed(committed: Served, name: str) -> None:
    page = README.with_name("docs").joinpath(name).read_text("utf-8")
    found = re.findall(r"^```http\nPOST (\S+)\n(.*?)^```$.*?^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    answered = [example for example in found if '"model"' in example[2]]
    assert len(answered) == {"api.md": 2, "attention-api.md": 3}[name]
    for path, body, shown in answered:
        answer, expected = committed.client.post(path, content=body).json(), json.loads(shown)
        # A time, of another machine.
        assert (answer.pop("forward_seconds", 0) > 0) == (expected.pop("forward_seconds", 0) > 0)
        assert_close(answer, expected)


@pytest.mark.http
@pytest.mark.export
@pytest.mark.parametrize("route", ["predict", "attention"])
def test_answers_in_openapi_are_as_printed(committed: Served, route: str) -> None:
    operation = committed.client.get("/openapi.json").json()["paths"][f"/v1/models/{{model}}/{route}"]["post"]
    example = next(iter(operation["requestBody"]["content"]["application/json"]["examples"].values()))
    shown = operation["responses"]["200"]["content"]["application/json"]["example"]
    # FastAPI leaves nulls out of the document.
    assert_close(without_nulls(committed.ask(route, example["value"], model="nt-expressive")), shown)


@pytest.mark.http
@pytest.mark.export
def test_answers_of_the_open_inference_protocol_are_as_printed(committed: Served) -> None:
    page = README.with_name("docs").joinpath("oip.md").read_text("utf-8")
    found = re.search(
        r"^curl -s http://[^/]+(\S+) -d '(.*?)'\n```.*?^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    assert found is not None
    path, body, shown = found.groups()
    assert_close(committed.client.post(path, content=body).json(), json.loads(shown))
    infer = committed.client.get("/openapi.json").json()["paths"]["/v2/models/{model}/infer"]["post"]
    example = next(iter(infer["requestBody"]["content"]["application/json"]["examples"].values()))["value"]
    answer = committed.client.post("/v2/models/nt-expressive/infer", json=example).json()
    assert_close(answer, infer["responses"]["200"]["content"]["application/json"]["example"])


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def assert_close(found: Any, shown: Any) -> None:
    """Same keys, texts and integers; numbers to three digits, because machines round differently."""
    if isinstance(shown, dict):
        assert found.keys() == shown.keys()
        for key in shown:
            assert_close(found[key], shown[key])
    elif isinstance(shown, list):
        assert len(found) == len(shown)
        for one, other in zip(found, shown, strict=True):
            assert_close(one, other)
    elif isinstance(shown, float):
        assert math.isclose(found, shown, rel_tol=2e-3, abs_tol=1e-5)
    else:
        assert found == shown
