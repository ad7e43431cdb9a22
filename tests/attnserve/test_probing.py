"""Trying devices out: what computes, and what ONNX Runtime says where nothing does."""

import os
import sys
import tempfile

import numpy as np
import onnxruntime
import pytest

from attnserve import probing, sessions
from attnserve.probing import PROBE, find_missing_libraries, try_device


class Session:
    """What `InferenceSession` makes on a machine with CUDA, as far as it is asked."""

    def __init__(self, model, *, providers, enable_fallback):
        assert (model, providers, enable_fallback) == (PROBE, ["CUDAExecutionProvider"], 0)

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def run(self, names, feeds):
        return [feeds["x"] @ feeds["x"]]


class FallenBack(Session):
    def __init__(self, model, **options):
        super().__init__(model, **options)
        os.write(2, b"[E:onnxruntime] Failed to load libcublas.so.13\n\n")

    def get_providers(self):
        return ["CPUExecutionProvider"]


class Failing(Session):
    def run(self, names, feeds):
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")


class Wrong(Session):
    def run(self, names, feeds):
        return [feeds["x"]]


@pytest.fixture
def with_driver(monkeypatch):
    monkeypatch.setattr(sessions, "_has_nvidia_driver", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"))


def test_the_probe_is_what_onnx_would_write():
    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    model = onnx.load_from_string(PROBE)
    onnx.checker.check_model(model, full_check=True)
    assert [(node.op_type, list(node.input)) for node in model.graph.node] == [("MatMul", ["x", "x"])]


def test_the_cpu_computes():
    assert try_device("cpu") is None


def test_a_product_that_is_wrong_is_no_device(monkeypatch):
    monkeypatch.setattr(probing.np, "array_equal", lambda *_: False)
    assert try_device("cpu") == "wrong product: expected [[7.0, 10.0], [15.0, 22.0]], got [[7.0, 10.0], [15.0, 22.0]]"


def test_without_a_driver_cuda_is_not_tried(monkeypatch):
    monkeypatch.setattr(sessions, "_has_nvidia_driver", lambda: False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    assert "this" in str(try_device("cuda"))


@pytest.mark.parametrize(
    ("session", "said"),
    [
        (Session, None),
        (FallenBack, "ONNX Runtime fell back to the CPU; it said: [E:onnxruntime] Failed to load libcublas.so.13"),
        (Failing, "ONNX Runtime: CUDA failure 700: an illegal memory access was encountered"),
        (Wrong, "wrong product: expected [[7.0, 10.0], [15.0, 22.0]], got [[1.0, 2.0], [3.0, 4.0]]"),
    ],
)
def test_cuda_is_what_a_session_does_there(monkeypatch, with_driver, capfd, session, said):
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert try_device("cuda") == said
    # All of it is in the answer: a report with lines between its lines cannot be read.
    assert capfd.readouterr() == ("", "")


def test_stderr_is_given_back(monkeypatch, with_driver, capfd):
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    try_device("cuda")
    os.write(2, b"heard\n")
    print("heard too", file=sys.stderr)
    assert capfd.readouterr().err == "heard\nheard too\n"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no files in memory")
def test_nothing_is_written_to_a_disk(monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FileNotFoundError):
        tempfile.gettempdir()
    assert try_device("cpu") is None


@pytest.mark.parametrize(
    ("cuda", "some"),
    [("12.8", {"libcublas.so.12", "libcufft.so.11"}), ("13.0", {"libcublas.so.13", "libcufft.so.12"})],
)
def test_libraries_are_those_of_a_release(monkeypatch, cuda, some):
    monkeypatch.setattr(probing, "_can_load", lambda _: False)
    missing = set(find_missing_libraries(cuda))
    assert some | {"libcurand.so.10", "libcudnn.so.9"} < missing
    monkeypatch.setattr(probing, "_can_load", lambda name: name in some)
    assert set(find_missing_libraries(cuda)) == missing - some


def test_libraries_are_found_where_pip_puts_them(monkeypatch, tmp_path):
    # Of a release that no machine has. Any library that loads will do.
    folder = tmp_path / "nvidia/cu99/lib"
    folder.mkdir(parents=True)
    (folder / "libcublas.so.99").symlink_to(np._core._multiarray_umath.__file__)
    (folder / "libcudart.so.99").write_text("no library")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    missing = find_missing_libraries("99.0")
    assert "libcublas.so.99" not in missing
    assert {"libcudart.so.99", "libcublasLt.so.99"} < set(missing)
