"""Captures stay where golden's weights are right, and nowhere else."""

from typing import Any

import pytest

from attnserve.bound import BoundSession, DeviceFailure
from attnserve.golden import read_golden
from attnserve.runtime import Runtime
from attnserve.settling import settle
from tests.attnserve.conftest import BUNDLE


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(BUNDLE, num_threads=1, binds=True)


def test_where_they_are_right_captures_stay(runtime: Runtime) -> None:
    assert settle(runtime, read_golden(BUNDLE)) is None
    assert runtime.residence is not None
    # Nothing of golden has.
    assert runtime.residence.num_bytes == 0


def test_where_they_are_wrong_they_do_not(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BoundSession.run
    monkeypatch.setattr(BoundSession, "run", lambda *arguments: [2 * array for array in run(*arguments)])
    reason = settle(runtime, read_golden(BUNDLE))
    assert reason is not None
    assert reason.endswith("OUTSIDE THE CERTIFICATE")
    assert runtime.residence is None


def test_where_they_cannot_be_computed_they_do_not(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise DeviceFailure("the device failed") from RuntimeError("CUDA failure 209")

    monkeypatch.setattr(BoundSession, "run_there", fail)
    assert settle(runtime, read_golden(BUNDLE)) == "CUDA failure 209"
    assert runtime.residence is None


def test_where_there_is_no_room_for_golden_they_do_not(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "hold", lambda *_: {})
    assert settle(runtime, read_golden(BUNDLE)) == "there is no room on the device for golden's captures"
    assert runtime.residence is None
