"""`make bundles` with a stand-in for the command: what is exported when, and as which version."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ATTNSERVE = """#!/bin/sh
mkdir -p "$3" && touch "$3/manifest.json" && echo "$@"
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command = tmp_path / ".venv" / "bin" / "attnserve"
    command.parent.mkdir(parents=True)
    command.write_text(ATTNSERVE)
    command.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    for name in ("nt-a", "nt-b"):
        weights = tmp_path / "checkpoints" / name / "model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.touch()
    return tmp_path


def make(tree: Path, *words: str) -> list[str]:
    # Not this run's own flags: `make test` would hand them down.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(("make", *words), cwd=tree, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def age(path: Path, seconds: int) -> None:
    os.utime(path, (path.stat().st_mtime + seconds,) * 2)


def test_each_checkpoint_is_exported_once(tree):
    assert make(tree, "bundles") == [
        "export checkpoints/nt-a/ repository/nt-a/1",
        "export checkpoints/nt-b/ repository/nt-b/1",
    ]
    assert make(tree, "bundles") == []


def test_a_newer_checkpoint_is_the_next_version(tree):
    make(tree, "bundles")
    # 10 > 9: versions are numbers.
    for version in ("9", "10"):
        shutil.copytree(tree / "repository/nt-a/1", tree / "repository/nt-a" / version)
    age(tree / "checkpoints/nt-a/model.safetensors", 60)
    assert make(tree, "bundles") == ["export checkpoints/nt-a/ repository/nt-a/11"]


def test_what_is_not_a_bundle_is_passed_over(tree):
    for name in ("1", ".tmp-job", "notes"):
        (tree / "repository/nt-a" / name).mkdir(parents=True)
    assert "export checkpoints/nt-a/ repository/nt-a/2" in make(tree, "bundles")


def test_help_lists_every_word(tree):
    words = {line.split()[0] for line in make(tree, "help")}
    phony = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1].split())
    assert words == phony - {"tests"}
