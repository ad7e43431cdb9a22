"""Libraries of kernels, built once: ours in the folder of `make kernels`, so that what is tested is what is used."""

import contextlib
import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels"
CACHE = ROOT / ".cache" / "kernels"
TARGETS = ("avx512", "avx2", "portable")
TARGET_OPTION = "attnserve.target"


@cache
def build_library(folder: Path = SOURCES / "build", *options: str) -> Path:
    """Our library; skips where it cannot be built."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    find_headers()
    with locked(folder):
        for command in (("cmake", "-S", SOURCES, "-B", folder, *options), ("cmake", "--build", folder)):
            run(*command)
    return folder / "libattnserve_kernels.so"


@cache
def build_recognisable() -> Path:
    """A library whose ExpressiveAttention answers 0.125, whatever it is given: tests/kernels/recognisable.cc."""
    source, library = Path(__file__).with_name("recognisable.cc"), CACHE / "recognisable.so"
    headers = find_headers()
    with locked(CACHE):
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            run("c++", "-std=c++17", "-shared", "-fPIC", "-I", headers / "onnxruntime", source, "-o", library)
    return library


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


def find_headers() -> Path:
    """The folder of the headers of ONNX Runtime and Highway; skips where there is no compiler or one is missing."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    for place in (ROOT / ".cache/headers", Path("/usr/local/include"), Path("/usr/include")):
        if all((place / name).exists() for name in ("onnxruntime/onnxruntime_cxx_api.h", "hwy/highway.h")):
            return place
    return pytest.skip("no headers of ONNX Runtime and Highway: kernels/headers fetches them on Debian")


def find_cuda() -> Path:
    """The folder of CUDA's `include` and `bin`; skips where there is none."""
    nvcc = shutil.which("nvcc")
    places = [Path("/usr/local/cuda"), *Path("/usr/local").glob("cuda-*")]
    if nvcc is not None:
        places.insert(0, Path(nvcc).resolve().parents[1])
    for place in places:
        if (place / "include" / "cuda_fp16.h").exists():
            return place
    return pytest.skip("no CUDA toolkit")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in `folder`: other runs of the tests build there too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
