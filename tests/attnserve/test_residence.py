"""`Residence` has room for so much at a time; what a run writes there is what it would have returned."""

import gc
import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest

from attnserve.bundle import LOGITS
from attnserve.packing import pack
from attnserve.resident import Resident
from attnserve.runtime import Runtime
from tests.attnserve.conftest import BUNDLE

PACKED = pack([np.array([1, 2, 3, 4]), np.array([0])])
ROWS, CAPTURE = np.array([3, 4]), np.array([0, 1, 2, 3, 4])


@pytest.fixture(scope="module")
def settled() -> Runtime:
    runtime = Runtime(BUNDLE, num_threads=1, binds=True)
    runtime.settle()
    return runtime


@pytest.fixture
def runtime(settled: Runtime) -> Any:
    assert settled.residence is not None
    yield settled
    settled.residence.max_bytes = float("inf")
    assert settled.residence.num_bytes == 0


def test_a_run_writes_what_it_would_have_returned(runtime: Runtime) -> None:
    names = [name for layer in runtime.manifest.layers for name in layer.captures.values()]
    expected = Runtime(BUNDLE, num_threads=1).run(PACKED, ROWS, [LOGITS, *names], CAPTURE)
    held = runtime.hold(names, len(CAPTURE))
    assert sorted(held) == sorted(names)
    found = runtime.run(PACKED, ROWS, [LOGITS], CAPTURE, held=held)
    assert list(found) == [LOGITS]
    np.testing.assert_array_equal(found[LOGITS], expected[LOGITS])
    for name, resident in held.items():
        assert resident.held.value.data_type() == f"tensor({'float' if expected[name].itemsize == 4 else 'float16'})"
        np.testing.assert_array_equal(resident.fetch(), expected[name])


def test_where_nothing_stays_there_is_no_room() -> None:
    runtime = Runtime(BUNDLE, num_threads=1, binds=True)
    assert runtime.residence is None
    assert runtime.hold(["layers.0.query"], 5) == {}


def test_room_is_bounded_and_given_back_with_the_last_reference(runtime: Runtime) -> None:
    residence = runtime.residence
    assert residence is not None
    # [5, 2, 4] float32 each.
    residence.max_bytes = 400
    first = runtime.hold(["layers.0.query"], 5)
    assert residence.num_bytes == 160
    second = runtime.hold(["layers.1.query"], 5)
    assert (len(second), residence.num_bytes) == (1, 320)
    # All of it, or nothing.
    assert runtime.hold(["layers.0.query", "layers.0.key"], 2) == {}
    assert residence.num_bytes == 320
    part = first["layers.0.query"][1:3]
    first.clear()
    gc.collect()
    assert residence.num_bytes == 320
    del part
    gc.collect()
    assert residence.num_bytes == 160
    assert runtime.hold(["layers.0.query"], 7)


def test_what_cannot_be_had_is_given_back(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    residence = runtime.residence
    assert residence is not None
    make, num_made = onnxruntime.OrtValue.ortvalue_from_shape_and_type, []

    def fail_second(*arguments: Any) -> Any:
        num_made.append(1)
        if len(num_made) == 2:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 160")
        return make(*arguments)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(fail_second))
    assert runtime.hold(["layers.0.query", "layers.0.key", "layers.1.key"], 5) == {}
    assert "for want of memory on the device: Failed to allocate memory" in caplog.text
    gc.collect()
    assert residence.num_bytes == 0


def test_threads_never_have_more_than_there_is(runtime: Runtime) -> None:
    residence = runtime.residence
    assert residence is not None
    residence.max_bytes = 3 * 160
    kept: list[dict[str, Resident]] = []
    threads = [threading.Thread(target=lambda: kept.append(runtime.hold(["layers.0.query"], 5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, kept)) == 3
    assert residence.num_bytes == 3 * 160
    kept.clear()
