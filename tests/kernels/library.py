"""The library of kernels, built once: by `make kernels`' own build folder, so that what is tested is what is used."""

import fcntl
import shutil
import subprocess
from functools import cache
from pathlib import Path

import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels"
LIBRARY = "libattnserve_kernels.so"
TARGETS = ("avx512", "avx2", "portable")
TARGET_OPTION = "attnserve.target"


@cache
def build_library(folder: Path = SOURCES / "build", *options: str) -> Path:
    """The library, built in `folder` if anything has changed; skips where it cannot be built."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    if not has_headers():
        pytest.skip("no headers of ONNX Runtime and Highway: kernels/headers fetches them on Debian")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        # Other runs of the tests build in the same folder.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (("cmake", "-S", SOURCES, "-B", folder, *options), ("cmake", "--build", folder)):
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / LIBRARY


def has_headers() -> bool:
    """Whether CMake will find what it needs."""
    installed = [Path(prefix) for prefix in ("/usr/include", "/usr/local/include", ROOT / ".cache/headers")]
    return any((place / "hwy/highway.h").exists() for place in installed) and any(
        (place / "onnxruntime/onnxruntime_cxx_api.h").exists() for place in installed
    )


@cache
def has_target(library: Path, target: str) -> bool:
    """Whether this processor has an instruction set."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(TARGET_OPTION, target)
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime's own types are not public.
        if f"{TARGET_OPTION}: expected one of " not in str(error):
            raise
        return False
    return True
