"""A wheel for a platform brings its kernels, and whoever installs it has them by that."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from attnserve.kernels import LIBRARY
from tests.kernels.library import ROOT, build_library, run

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


def test_make_wheel(tmp_path: Path) -> None:
    # In a copy: building writes build/lib and egg-info beside the sources.
    tree = tmp_path / "tree"
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"].values()
    for folder in folders:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, tree)
    (tree / "kernels" / "build").mkdir(parents=True)
    shutil.copy(build_library(), tree / "kernels" / "build")
    # What `install` and `kernels` would make is there.
    run("make", "-C", tree, "-o", "install", "-o", "kernels", "wheel", f"BIN={Path(sys.executable).parent}")
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.stem.endswith("-py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_"))
    assert not (tree / "attnserve" / LIBRARY).exists()
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # Dependencies are read from this environment; a path, unlike a site folder, brings no editable install with it.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    code = (
        "from attnserve.kernels import *; from attnserve.describing import *; "
        "found = find_kernels('auto'); print(found, explain_unusable(found), statistics_file('softmax').is_file())"
    )
    done = subprocess.run((python, "-c", code), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, reason, has_graphs = done.stdout.split()
    assert Path(found).is_relative_to(tmp_path / "env")
    assert (reason, has_graphs) == ("None", "True")
