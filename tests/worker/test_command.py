"""`attnserve worker`: what keeps it from starting is one line."""

import os
import subprocess
import sys

import pytest

from attnserve.cli import main
from attnserve.worker import command
from tests.worker.conftest import process

LINE = "attnserve: "


def run(capsys, *arguments: str) -> str:
    assert main(["worker", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(LINE)
    assert error.count("\n") == 1
    return error.removeprefix(LINE).strip()


def test_a_repository_that_is_none(capsys, tmp_path):
    assert run(capsys, str(tmp_path / "none")).startswith("repository: expected a folder of bundles, got ")
    bundle = tmp_path / "m" / "1"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").touch()
    assert run(capsys, str(bundle)).startswith("repository: expected the folder above MODEL/VERSION")


def test_a_repository_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    # Tests may run as root, who can.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run(capsys, str(tmp_path)) == f"repository: expected a folder that can be written, got {tmp_path}"


def test_settings_that_are_wrong(capsys, tmp_path):
    assert run(capsys, str(tmp_path), "--max-export-seconds", "0").startswith("--max-export-seconds (ATTNSERVE_")


def test_a_database_that_is_none(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert run(capsys, str(tmp_path), "--database-url", f"sqlite:///{tmp_path / 'file' / 'x'}").startswith(
        "--database-url"
    )


@pytest.mark.parametrize("missing", ["dbos", "torch", "onnx"])
def test_without_what_it_needs_the_extra_is_named(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; from attnserve.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "worker", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"attnserve: `attnserve worker` needs {missing}: pip install 'attnserve[export]'\n"


def test_all_is_in_the_repository_by_default(tmp_path):
    places = command.find_places(tmp_path, command.WorkerSettings())
    assert places.repository == tmp_path
    assert places.checkpoints == tmp_path / ".attnserve" / "checkpoints"


def test_the_log_has_the_settings_but_what_may_be_a_password(places, url):
    with process(url, places) as worker:
        lines = []
        while "ready" not in (line := worker.stderr.readline()):
            assert line, lines
            lines.append(line)
        worker.terminate()
        rest = worker.communicate(timeout=60)[1]
    assert worker.returncode == 0
    assert "max_export_seconds=3600" in "".join(lines)
    assert url not in "".join(lines) + rest
    # DBOS tells of every table it makes and where its console is sold; not here.
    assert "dbos" not in "".join(lines) + rest
