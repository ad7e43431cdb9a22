"""docs/oip.md: its examples run, and its answers have the fields that real ones have."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from attnserve.service.oip.request import MAX_ID, REFUSED
from attnserve.service.selection import MAX_ENTRIES

pytestmark = pytest.mark.http

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "oip.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_example_with_tritonclient_runs(server):
    (program,) = (text for language, text in BLOCKS if language == "python")
    # The page's model has one head and a vocabulary of eight, the one of the tests two and twenty.
    for old, new in {
        '"127.0.0.1:8000"': repr(server.url.removeprefix("http://")),
        '"nt-expressive"': '"tiny"',
        "(2, 8, 8)": "(2, 8, 20)",
        "(2, 1, 8, 8)": "(2, 2, 8, 8)",
    }.items():
        assert old in program
        program = program.replace(old, new)
    exec(compile(program, "oip.md", "exec", dont_inherit=True), {"__name__": "example"})


def test_the_example_with_curl_is_answered_as_shown(server):
    (command,) = (text for language, text in BLOCKS if language == "bash")
    path, body = re.fullmatch(r"curl -s http://127.0.0.1:8000(\S+) -d '(.*)'\n", command, re.DOTALL).groups()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = server.client.post(path.replace("nt-expressive", "tiny"), content=body, headers=headers)
    assert response.status_code == 200, response.text
    shown = json.loads(next(text for language, text in BLOCKS if language == "json"))
    found = response.json()
    assert list(found) == list(shown)
    assert list(found["outputs"][0]) == list(shown["outputs"][0])
    weights = np.array(found["outputs"][0]["data"]).reshape(found["outputs"][0]["shape"])
    assert weights.shape == (2, 2, 3, 3)


def test_numbers_and_names_are_those_of_the_code(server):
    assert f"{MAX_ENTRIES:,} numbers" in PAGE
    assert f"at most {MAX_ID} characters" in PAGE
    assert all(f"`{name}`" in PAGE for name in REFUSED)
    paths = [path for path in server.client.get("/openapi.json").json()["paths"] if path.startswith("/v2")]
    named = [path.replace("/versions/{version}", "") for path in paths]
    assert not [path for path in named if f"{path}`" not in PAGE]
    outputs = server.client.get("/v2/models/tiny").json()["parameters"]["optional_outputs"]
    assert not [output for output in outputs if re.sub(r"\d", "{i}", output["name"]) not in PAGE]
