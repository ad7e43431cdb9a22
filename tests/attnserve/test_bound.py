"""`BoundSession` answers as the session does, from arrays and from tensors that stay."""

import numpy as np
import onnxruntime
import pytest

from attnserve.bound import BoundSession, DeviceFailure
from attnserve.interrupt import Interrupt, Interrupted
from attnserve.packing import pack
from attnserve.resident import LAY_OUT, capture_file
from attnserve.runtime import Runtime
from attnserve.sessions import open_session
from tests.attnserve.conftest import BUNDLE

VALUES = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
FEEDS = {"values": VALUES, "rows": np.array([4, 0]), "heads": np.array([1])}
EXPECTED = VALUES[[4, 0]][:, [1]].transpose(1, 0, 2)


@pytest.fixture(scope="module")
def session() -> BoundSession:
    return BoundSession(open_session(capture_file(LAY_OUT, "float32"), "cpu", 1), device="cpu", gpu=0)


@pytest.mark.parametrize("names", [None, ["by_head"]])
def test_outputs_come_to_the_host(session: BoundSession, names: list[str] | None) -> None:
    (found,) = session.run(names, FEEDS)
    np.testing.assert_array_equal(found, EXPECTED)
    assert [output.name for output in session.get_outputs()] == ["by_head"]


def test_what_stays_is_read_again(session: BoundSession) -> None:
    # By head it is [1, 2, 3]; as captured rows, one row of two heads.
    staying = session.run_there(FEEDS)
    assert isinstance(staying, onnxruntime.OrtValue)
    (found,) = session.run(None, {"values": staying, "rows": np.array([0]), "heads": np.array([1, 0])})
    np.testing.assert_array_equal(found, EXPECTED.transpose(1, 0, 2)[[1, 0]])


def test_arrays_need_not_be_contiguous(session: BoundSession) -> None:
    wide = np.repeat(VALUES, 2, axis=2)
    (found,) = session.run(None, {**FEEDS, "values": wide[:, :, ::2]})
    np.testing.assert_array_equal(found, EXPECTED)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was waited for after runs that failed; by a device that fails then as well."""
    names: list[str] = []

    def fail(binding: onnxruntime.IOBinding) -> None:
        names.extend(binding._bound_outputs)
        raise RuntimeError("CUDA failure 719")

    monkeypatch.setattr(onnxruntime.IOBinding, "synchronize_outputs", fail)
    return names


@pytest.mark.parametrize("method", ["run", "run_there"])
def test_a_failure_is_the_devices(
    session: BoundSession, method: str, capfd: pytest.CaptureFixture[str], waited: list[str]
) -> None:
    feeds = {**FEEDS, "rows": np.array([5])}
    with pytest.raises(DeviceFailure, match="the device failed") as caught:
        session.run(None, feeds) if method == "run" else session.run_there(feeds)
    assert "out of data bounds" in str(caught.value.__cause__)
    assert waited == ["by_head"]


def test_a_run_that_is_ended_is_waited_for(waited: list[str]) -> None:
    runtime = Runtime(BUNDLE, num_threads=1, binds=True)
    interrupt, packed = Interrupt(), pack([np.array([1, 2])])
    runtime.run(packed, np.array([1]), ["logits"], interrupt=interrupt)
    assert waited == []
    interrupt.set()
    with pytest.raises(Interrupted):
        runtime.run(packed, np.array([1]), ["logits"], interrupt=interrupt)
    assert waited == ["logits"]
