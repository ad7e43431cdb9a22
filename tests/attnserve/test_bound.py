"""`BoundSession` answers as the session does, from arrays and from tensors that stay."""

import numpy as np
import onnxruntime
import pytest

from attnserve.bound import BoundSession, DeviceFailure
from attnserve.resident import LAY_OUT, capture_file
from attnserve.sessions import open_session

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


@pytest.mark.parametrize("method", ["run", "run_there"])
def test_a_failure_is_the_devices(session: BoundSession, method: str, capfd: pytest.CaptureFixture[str]) -> None:
    feeds = {**FEEDS, "rows": np.array([5])}
    with pytest.raises(DeviceFailure, match="the device failed") as caught:
        session.run(None, feeds) if method == "run" else session.run_there(feeds)
    assert "out of data bounds" in str(caught.value.__cause__)
