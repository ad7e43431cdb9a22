"""A worker that runs as long as the service: started again, stopped, and never left behind."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnserve.service.exports import companion
from attnserve.service.exports.companion import Companion, find_companion, make_command, make_environment
from attnserve.service.settings import Settings

# Tells its id, and then does as the test says; its parent's id comes last.
PROCESS = """
import os, signal, sys
from attnserve.lifeline import die_with
die_with(int(sys.argv[2]))
{prepare}
with open(sys.argv[1], "w") as pipe:
    print(os.getpid(), file=pipe)
{then}
"""


class Started:
    """A companion whose processes tell that they run."""

    def __init__(self, folder: Path, *, prepare: str = "", then: str = "signal.pause()", **options):
        pipe = folder / "pipe"
        os.mkfifo(pipe)
        code = PROCESS.format(prepare=prepare, then=then)
        self.companion = Companion([sys.executable, "-c", code, str(pipe)], dict(os.environ), **options)
        # For writing too, or each process would end the file.
        self._lines = os.fdopen(os.open(pipe, os.O_RDWR), "r+b", buffering=0)

    def next(self) -> int:
        """Id of the next process."""
        return int(self._lines.readline())


@pytest.fixture
def start(tmp_path):
    started = []

    def run(**options):
        started.append(Started(tmp_path, **options))
        started[0].companion.start()
        return started[0]

    yield run
    for each in started:
        each.companion.stop()
        each._lines.close()


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_runs_until_it_is_stopped(start):
    started = start()
    process_id = started.next()
    # A group of its own: Ctrl-C is for the service.
    assert os.getpgid(process_id) == process_id
    started.companion.stop()
    assert not is_alive(process_id)
    # Once more changes nothing.
    started.companion.stop()


def test_it_is_started_again_and_again(start, monkeypatch, caplog):
    monkeypatch.setattr(companion, "FIRST_RETRY_SECONDS", 0.001)
    started = start(then="sys.exit(3)")
    assert len({started.next() for _ in range(4)}) == 4
    assert "the worker ended with exit code 3; it is started again in 0.001 s" in caplog.text
    assert "it is started again in 0.002 s" in caplog.text


def test_one_that_ran_for_long_is_started_again_soon(start, monkeypatch, caplog):
    monkeypatch.setattr(companion, "FIRST_RETRY_SECONDS", 0.001)
    seconds = iter(range(0, 100_000, 61))
    started = start(then="sys.exit(3)", clock=lambda: next(seconds))
    for _ in range(4):
        started.next()
    assert "it is started again in 0.001 s" in caplog.text
    assert "it is started again in 0.002 s" not in caplog.text


def test_it_is_stopped_while_it_waits_to_be_started_again(start, monkeypatch):
    monkeypatch.setattr(companion, "FIRST_RETRY_SECONDS", 3600)
    started = start(then="sys.exit(3)")
    process_id = started.next()
    while is_alive(process_id):
        os.sched_yield()
    started.companion.stop()


def test_one_that_does_not_stop_is_killed(start, monkeypatch, caplog):
    monkeypatch.setattr(companion, "STOP_SECONDS", 0.1)
    started = start(prepare="signal.signal(signal.SIGTERM, signal.SIG_IGN)", then="while True: signal.pause()")
    process_id = started.next()
    started.companion.stop()
    assert not is_alive(process_id)
    assert "is killed" in caplog.text


def test_one_that_was_never_started_is_stopped():
    Companion(["nothing"], {}).stop()


def test_stopped_first_it_never_starts():
    never = Companion([sys.executable, "-c", "raise SystemExit('started')"], {})
    never.stop()
    never.start()
    never._thread.join()
    assert never._process is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells a process that its parent has ended")
def test_it_ends_with_the_service_however_that_ends(tmp_path):
    service = """
import sys, threading
from attnserve.service.exports.companion import Companion
Companion([sys.executable, "-c", sys.argv[1], sys.argv[2]], {}).start()
threading.Event().wait()
"""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    then = "print('runs', flush=True); signal.pause()"
    command = [sys.executable, "-c", service, PROCESS.format(prepare="", then=then), str(pipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        pipe.read_text()
        assert process.stdout.readline() == b"runs\n"
        process.kill()
        # Its end comes when nobody holds it any more.
        assert process.stdout.read() == b""


def settings(**fields) -> Settings:
    return Settings(**fields)


def test_where_it_can_run_it_does(tmp_path):
    assert find_companion(tmp_path, settings()) is not None
    assert find_companion(tmp_path, settings(export_worker="on", database_url="postgresql://host/jobs")) is not None


def test_where_others_run_workers_it_does_not(tmp_path):
    assert find_companion(tmp_path, settings(database_url="postgresql://host/jobs")) is None
    assert find_companion(tmp_path, settings(export_worker="off")) is None


def test_where_the_repository_cannot_be_written_it_does_not(tmp_path, monkeypatch):
    # Root, as whom containers often run tests, may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert find_companion(tmp_path, settings()) is None


def test_without_the_extra_it_must_be_asked_for_to_complain(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    assert find_companion(tmp_path, settings()) is None
    with pytest.raises(ModuleNotFoundError) as caught:
        find_companion(tmp_path, settings(export_worker="on"))
    assert caught.value.name == "torch"


def test_it_is_the_command_with_the_settings_of_the_service():
    command = make_command(Path("/models"), settings(log_format="json", log_level="warning"))
    words = command[command.index("worker") :]
    assert words[:2] == ["worker", "/models"]
    assert "--log-level warning --log-format json" in " ".join(words)
    assert "--checkpoints" not in words
    command = make_command(Path("/models"), settings(checkpoints="/uploads"))
    assert command[-2:] == ["--checkpoints", "/uploads"]


def test_a_password_is_on_no_command_line():
    given = settings(database_url="postgresql://me:secret@host/jobs")
    assert "secret" not in " ".join(make_command(Path("/models"), given))
    assert make_environment(given)["ATTNSERVE_DATABASE_URL"] == "postgresql://me:secret@host/jobs"
