"""The process that builds for a worker: what it says, and what of whose making an error is."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attnserve.export import child
from attnserve.export.child import MAX_REASON, Channel, judge
from attnserve.export.verify import VerificationError
from attnserve.jobs import Verdict
from attnserve.models.checkpoint import CheckpointError

pytestmark = pytest.mark.export


@pytest.fixture
def source(small_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle"


def judge_silently(source: Path, folder: Path) -> Verdict:
    return judge(source, folder, "float32", False, Channel(io.StringIO()))


def failing(error: BaseException):
    def build(*arguments, report, **options):
        report("load", "x")
        report("verify", "y")
        raise error

    return build


def test_a_failed_verification_has_a_report(source, folder, monkeypatch):
    monkeypatch.setattr(child, "build_checkpoint", failing(VerificationError("it differs", report="by so much")))
    outcome = judge_silently(source, folder).outcome
    assert (outcome.step, outcome.reason, outcome.report) == ("verify", "it differs", "by so much")


def test_a_bug_is_called_one_and_leaves_a_traceback(source, folder, monkeypatch, capsys):
    monkeypatch.setattr(child, "build_checkpoint", failing(KeyError("oops")))
    assert judge_silently(source, folder).outcome.reason == "unexpected KeyError: 'oops'"
    assert "Traceback" in capsys.readouterr().err


def test_reasons_are_short_and_may_be_stored(source, folder, monkeypatch, capsys):
    monkeypatch.setattr(child, "build_checkpoint", failing(CheckpointError(f"{source}/a\ud800" + "x" * 10_000)))
    reason = judge_silently(source, folder).outcome.reason
    assert reason.startswith("a?xxx")
    assert len(reason.encode()) == MAX_REASON
    assert capsys.readouterr().err == ""


SPEAK = """
import sys
from attnserve.export import child
def build(checkpoint, folder, *, precision, portable, top_k, report):
    report("load", "where the checkpoint is")
    print("a library says something")
    report("graph", f"{precision} {portable} {top_k}")
    raise ValueError("precision: expected another")
child.build_checkpoint = build
sys.exit(child.main())
"""


def test_nothing_but_json_comes_where_the_worker_listens(source, folder):
    command = [
        sys.executable,
        "-P",
        "-c",
        SPEAK,
        str(source),
        str(folder),
        "--precision",
        "float16",
        "--portable",
        "--top-k",
        "5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == "a library says something\n"
    *progress, last = map(json.loads, done.stdout.splitlines())
    assert progress == [
        {"progress": {"step": "load", "message": "config, tensors, tokenizer and card"}},
        {"progress": {"step": "graph", "message": "float16 True 5"}},
    ]
    assert last["verdict"]["outcome"]["reason"] == "precision: expected another"
