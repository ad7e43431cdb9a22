"""The process that builds is listened to and watched, and is gone when the job is."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from attnserve.jobs import ExportOrder
from attnserve.worker.listening import Limits, Said, listen, parse_line
from attnserve.worker.memory import measure_memory
from tests.worker.conftest import ROOMY, make_builder, wait_until

MIB = 1024 * 1024
ORDER = ExportOrder(checkpoint="c", files={}, model="m", version=1)


@pytest.fixture
def build(tmp_path):
    """`build(code, limits)`: what comes of a process that runs this."""
    work, folder = tmp_path / "work", tmp_path / "bundle"
    work.mkdir()
    folder.mkdir()

    def build(code, limits=ROOMY, check=lambda: None, said=None):
        on_progress = (lambda *_: None) if said is None else lambda step, message: said.append((step, message))
        return make_builder(limits, f"import os, signal, subprocess, sys, time\n{code}").build(
            ORDER, work, folder, on_progress, check
        )

    return build


SAY = """
import json
def say(document): print(json.dumps(document), flush=True)
"""
KILLED = "the export process was killed by SIGKILL in step load; if nobody has killed it, the system had no memory left"
FAILED = '{"verdict": {"outcome": {"state": "failed", "step": "load", "reason": "it is none"}}}'


def test_progress_and_verdict_are_passed_on(build):
    said = []
    code = f"{SAY}\nsay({{'progress': {{'step': 'graph', 'message': 'x'}}}}); print('noise'); print({FAILED!r})"
    verdict = build(code, said=said)
    assert said == [("graph", "x")]
    assert verdict.outcome.reason == "it is none"


def test_a_verdict_counts_whatever_happens_afterwards(build):
    assert build(f"print({FAILED!r}, flush=True); os.abort()").outcome.reason == "it is none"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", KILLED),
        ("os.abort()", "the export process was killed by SIGABRT in step load"),
        ("sys.exit(5)", "the export process ended with 5 in step load, without a verdict"),
        ("pass", "the export process ended with 0 in step load, without a verdict"),
        # What is left running does not keep the job.
        ("subprocess.Popen(['sleep', '600'])", "the export process ended with 0 in step load, without a verdict"),
        (
            "sys.stdout.write('x' * 20_000_000); time.sleep(600)",
            "building said a line without an end in step load",
        ),
    ],
    ids=["killed", "aborted", "exit", "silent", "left running", "endless line"],
)
def test_an_end_without_a_verdict_is_said(build, code, reason):
    assert build(code).outcome.reason == reason


def test_its_last_words_are_in_the_log(build, caplog):
    build("print('x' * 100_000 + 'what happened', file=sys.stderr); sys.exit(1)")
    (record,) = caplog.records
    assert record.getMessage().endswith("what happened\n")
    assert len(record.getMessage()) < 20_000


def test_too_much_memory_is_said_with_the_step(build):
    code = f"{SAY}\nsay({{'progress': {{'step': 'golden', 'message': ''}}}}); x = b'x' * (200 << 20); time.sleep(600)"
    reason = build(code, Limits(seconds=60, num_bytes=100 * MIB)).outcome.reason
    assert reason == ("building took more than 0.0977 GiB of memory (--max-export-bytes of the worker) in step golden")


def test_memory_of_what_it_starts_counts(build):
    code = "subprocess.run([sys.executable, '-c', \"x = b'x' * (200 << 20); import time; time.sleep(600)\"])"
    assert "GiB of memory" in build(code, Limits(seconds=60, num_bytes=100 * MIB)).outcome.reason


def test_too_much_time_is_said(build):
    reason = build("time.sleep(600)", Limits(seconds=0.3, num_bytes=MIB * 1024)).outcome.reason
    assert reason == "building took longer than 0.3 s (--max-export-seconds of the worker) in step load"


class Enough(BaseException):
    pass


def test_a_job_that_is_not_to_go_on_takes_its_processes_along(build, tmp_path):
    pids = tmp_path / "pids"
    code = (
        "other = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r} + '~', 'w').write(f'{{os.getpid()}} {{other.pid}}')\n"
        f"os.rename({str(pids)!r} + '~', {str(pids)!r}); time.sleep(600)"
    )

    def check():
        if pids.exists():
            raise Enough

    with pytest.raises(Enough):
        build(code, check=check)
    for process in pids.read_text().split():
        wait_until(lambda process=process: is_gone(int(process)))


def is_gone(process: int) -> bool:
    try:
        # Of one that nobody has waited for, the state is left.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_limits_act_while_whoever_is_told_is_busy(build, tmp_path):
    """A database that is away keeps the thread that is told of progress."""
    pid = tmp_path / "pid"
    is_free = False

    def check():
        nonlocal is_free
        if not is_free:
            wait_until(lambda: pid.exists() and pid.read_text())
            # It is dead when this thread has time again.
            wait_until(lambda: is_gone(int(pid.read_text())), "the end of the process")
            is_free = True

    code = f"open({str(pid)!r}, 'w').write(str(os.getpid())); sys.stdout.flush(); time.sleep(600)"
    reason = build(code, Limits(seconds=1, num_bytes=1024 * MIB), check).outcome.reason
    assert reason.startswith("building took longer than 1 s")


def test_a_listener_that_breaks_off_leaves_no_process_and_no_job(build, tmp_path, monkeypatch):
    pid = tmp_path / "pid"

    def break_off(*_):
        wait_until(lambda: pid.exists() and pid.read_text())

    monkeypatch.setattr("attnserve.worker.build.listen", break_off)
    with pytest.raises(RuntimeError, match="nobody listens"):
        build(f"open({str(pid)!r}, 'w').write(str(os.getpid())); sys.stdout.flush(); time.sleep(600)")
    assert is_gone(int(pid.read_text()))


def test_settings_and_their_passwords_are_not_handed_on(build, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNSERVE_DATABASE_URL", "postgresql://u:geheim@h/d")
    build(f"open({str(tmp_path / 'env')!r}, 'w').write(repr(dict(os.environ)))")
    environment = (tmp_path / "env").read_text()
    assert "geheim" not in environment
    assert f"'TMPDIR': '{tmp_path / 'work' / 'tmp'}'" in environment


@pytest.mark.parametrize(
    "line",
    [b"", b"noise", b"[]", b"3", b"{}", b'{"progress": 1}', b'{"progress": {"step": "x", "message": ""}}',
     b"[" * 10_000, b'{"progress": {"step": "load"}}', b'{"verdict": {}}', b'{"verdict": null}', b"\xff"],
)  # fmt: skip
def test_what_is_no_message_is_none(line):
    assert parse_line(line) is None


def test_a_message_is_read():
    assert parse_line(b'{"progress": {"step": "load", "message": "m"}}') == Said(step="load", message="m")


def test_memory_is_of_a_family():
    code = "x = b'x' * (50 << 20); import sys; print('ready', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; x = b'x' * (50 << 20); subprocess.run([sys.executable, '-c', {code!r}])"
    before = measure_memory(os.getpid())
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        assert 100 * MIB < measure_memory(process.pid) < 200 * MIB
        assert measure_memory(os.getpid()) > before + 100 * MIB
        process.communicate(b"")
    assert measure_memory(process.pid) == 0


def test_a_clock_that_is_given_is_asked():
    """Without a second of waiting: the limit is the clock's."""
    now = iter([0.0, *([100.0] * 1000)])
    process = subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    told = []
    listen(process, Limits(seconds=99, num_bytes=1 << 40), lambda: next(now), told.append, threading.Event())
    (ended,) = told
    assert ended.excess.startswith("building took longer than 99 s")
    assert ended.exit_code == -9
