"""The README is run: its shell and Python blocks in order, in an empty folder, against the committed models."""

import json
import math
import os
import re
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
def committed(start_server: Any, committed_bundles: Path) -> Iterator[Served]:
    with start_server(committed_bundles) as served:
        yield served


def test_quick_start_names_the_two_commands() -> None:
    (console,) = (text for language, text in BLOCKS if language == "console")
    assert re.findall(r"^\$ (make \w+)", console, re.MULTILINE) == ["make serve", "make test"]


@pytest.mark.http
@pytest.mark.export
def test_blocks_run_and_answers_are_as_printed(committed: Served, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    run = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for language, text in BLOCKS:
        if language == "json":
            assert_close(json.loads(printed), json.loads(text))
        elif language in run:
            assert ADDRESS in text or "curl" not in text
            command = [*run[language], text.replace(ADDRESS, committed.url)]
            process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert process.returncode == 0, f"{text}\n{process.stdout}{process.stderr}"
            printed = process.stdout
            if "curl" in text:
                assert "predictions" in json.loads(printed), printed


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
