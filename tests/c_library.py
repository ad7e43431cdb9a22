"""Stand-ins in C for libraries of NVIDIA's, compiled where there is a compiler."""

import shutil
import subprocess
from pathlib import Path

import pytest


def compile_library(source: Path, library: Path, *flags: str) -> Path:
    """Compile a file to a shared library; the test is skipped where nothing can."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    subprocess.run(["cc", "-shared", "-fPIC", *flags, source, "-o", library], check=True)
    return library
