"""Sessions are on the device asked for, or refused."""

import re
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from attnserve import sessions as module
from attnserve.bundle import BundleError
from attnserve.describing import STATISTICS_OP, statistics_file
from attnserve.runtime import Runtime
from attnserve.sessions import DeviceError, list_ops, open_session
from attnserve.traffic import CUDA
from tests.attnserve.conftest import BUNDLE, rehash
from tests.fake_cuda import FakeCuda
from tests.kernels.library import build_library


def test_unknown_devices_are_refused(folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"device: expected one of auto, cpu, cuda, got 'tpu'"):
        Runtime(folder, device="tpu")


@pytest.mark.parametrize("has_provider", [True, False])
def test_without_a_driver_auto_is_the_cpu_and_cuda_says_why(
    monkeypatch: pytest.MonkeyPatch, has_provider: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers[not has_provider :])
    monkeypatch.setattr(module, "_has_nvidia_driver", lambda: False)
    opened = Runtime(BUNDLE, device="auto")
    assert opened.device == "cpu"
    assert opened.session.get_providers() == ["CPUExecutionProvider"]
    reason = "this machine has no NVIDIA driver" if has_provider else "install attnserve[gpu]"
    with pytest.raises(DeviceError, match=rf"device: expected a usable CUDA device, got none: .*{re.escape(reason)}"):
        Runtime(BUNDLE, device="cuda")
    assert capfd.readouterr().err == ""


def test_where_nobody_may_look_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, **_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module.os, "stat", refuse)
    assert not module._has_nvidia_driver()


def test_a_session_on_a_device_is_freed_while_nobody_records(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda().install(monkeypatch.setattr)
    session, freed = open_session(statistics_file("softmax"), "cuda", 1), threading.Event()
    weakref.finalize(session._sess, freed.set)
    with CUDA.silence() as is_silent:
        assert is_silent
        del session
        assert not freed.is_set()
    # And before the next one takes memory.
    open_session(statistics_file("softmax"), "cuda", 1)
    assert freed.is_set()


def test_a_session_that_falls_back_silently_is_not_cuda(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What ONNX Runtime does where a driver is there and CUDA is not: it says nothing and computes on the CPU.
    import onnxruntime

    asked: list[str] = []

    def open_on_the_cpu(path: Path, device: str, *arguments: Any, **options: Any) -> Any:
        asked.append(device)
        return opened(path, "cpu", *arguments, **options)

    opened = module.open_session
    monkeypatch.setattr(module, "_has_nvidia_driver", lambda: True)
    monkeypatch.setattr(module, "open_session", open_on_the_cpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert Runtime(BUNDLE, device="auto").device == "cpu"
    assert asked[:2] == ["cuda", "cpu"]
    assert "model.onnx: on the CPU, as CUDA cannot be used: ONNX Runtime could not create" in caplog.text
    with pytest.raises(DeviceError, match="fell back to the CPU"):
        Runtime(BUNDLE, device="cuda")


@pytest.fixture
def asked_of_cuda(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A driver is there, and a session asked of CUDA fails. What is asked of sessions."""
    import onnxruntime

    asked: list[dict[str, Any]] = []
    make = onnxruntime.InferenceSession

    def make_session(path: str, options: Any, **arguments: Any) -> Any:
        asked.append(arguments)
        if arguments["providers"] != ["CPUExecutionProvider"]:
            raise RuntimeError("CUDA failure 2: out of memory")
        return make(path, options, **arguments)

    monkeypatch.setattr(module, "_has_nvidia_driver", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", make_session)
    return asked


def test_float32_is_not_rounded_to_tf32_and_no_provider_is_replaced(asked_of_cuda: list[dict[str, Any]]) -> None:
    Runtime(BUNDLE, device="auto")
    (name, options), cpu = asked_of_cuda[0]["providers"]
    assert (name, options["use_tf32"], cpu) == ("CUDAExecutionProvider", "0", "CPUExecutionProvider")
    assert all(asked["enable_fallback"] == 0 for asked in asked_of_cuda)


def test_a_device_that_cannot_load_a_bundle_is_told_from_a_bundle_that_nothing_can(
    asked_of_cuda: list[dict[str, Any]], folder: Path
) -> None:
    assert Runtime(folder, device="auto").device == "cpu"
    with pytest.raises(DeviceError, match=r"got none: .*model\.onnx: .*out of memory"):
        Runtime(folder, device="cuda")
    (folder / "model.onnx").write_text("no graph")
    rehash(folder)
    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        Runtime(folder, device="cuda")


def test_a_function_is_listed_as_what_is_in_it_unless_a_kernel_has_it() -> None:
    path = statistics_file("softmax")
    assert list_ops(open_session(path, "cpu", 1, build_library(), lists_ops=True)) == {STATISTICS_OP}
    in_it = list_ops(open_session(path, "cpu", 1, lists_ops=True))
    # Branches of an `If` too.
    assert {"Softmax", "Tanh"} < in_it
    assert STATISTICS_OP not in in_it
