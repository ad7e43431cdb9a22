"""The library of kernels for GPUs compiles, stands alone, and is one that ONNX Runtime registers."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from attnserve.kernels import explain_unusable
from tests.kernels.library import CACHE, SOURCES, find_headers, locked, run

pytestmark = pytest.mark.slow


@cache
def build_cuda_library() -> Path:
    """Skips where it cannot be built."""
    for name in ("cmake", "nvcc"):
        if shutil.which(name) is None:
            pytest.skip(f"no {name}")
    find_headers()
    folder = CACHE / "cuda"
    with locked(folder):
        run("cmake", "-S", SOURCES / "cuda", "-B", folder)
        run("cmake", "--build", folder)
    return folder / "libattnserve_cuda_kernels.so"


def test_nothing_of_cuda_must_be_there_to_load_it() -> None:
    needed = subprocess.run(("readelf", "-d", build_cuda_library()), capture_output=True, text=True, check=True).stdout
    names = {name.split(".so")[0] for name in re.findall(r"NEEDED.*\[(.*?)\]", needed)}
    assert names <= {"libstdc++", "libgcc_s", "libc", "libm", "ld-linux-x86-64"}


def test_one_function_of_ours_is_seen() -> None:
    shown = subprocess.run(("nm", "-DC", "--defined-only", build_cuda_library()), capture_output=True, text=True)
    assert "RegisterCustomOps" in shown.stdout
    assert "attnserve::" not in shown.stdout


def test_onnx_runtime_registers_it() -> None:
    assert explain_unusable(build_cuda_library()) is None
