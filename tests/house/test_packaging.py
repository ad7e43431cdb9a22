"""One import name, mapped from top-level folders: the tree, the editable install, the wheel and the sdist agree."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]
ROOT_FILES = ("pyproject.toml", "README.md", "LICENSE")


def packages_of_tree() -> list[str]:
    """A dotted name for every folder that holds Python."""
    packages = set()
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            packages.add(".".join([package, *path.parent.relative_to(ROOT / folder).parts]))
    return sorted(packages)


def requirement_name(line: str) -> str:
    name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_peers_benchmark_installs_what_the_package_needs():
    lines = (ROOT / "benchmarks/peers/attnserve/requirements.txt").read_text("utf-8").splitlines()
    installed = {requirement_name(line) for line in lines if not line.startswith("#")}
    assert {requirement_name(line) for line in PROJECT["project"]["dependencies"]} <= installed


def test_package_list_is_the_tree():
    assert sorted(PACKAGES) == packages_of_tree(), "a package missing from pyproject.toml is missing from the wheel"


@pytest.mark.parametrize("package", PACKAGES)
def test_editable_install_maps_to_the_tree(package):
    folder = max((name for name in FOLDERS if package == name or package.startswith(name + ".")), key=len)
    expected = ROOT.joinpath(FOLDERS[folder], *package.removeprefix(folder).split("."), "__init__.py")
    assert Path(importlib.import_module(package).__file__) == expected


@pytest.mark.parametrize("name", ["models", "export", "service", "worker"])
def test_folder_is_not_importable_by_its_bare_name(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_every_requirement_is_pinned():
    pins = {
        requirement_name(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line[0] != "#"
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(
            line
            for extra in ("export", "huggingface", "jobs", "recipes", "bench", "tracing", "dev")
            for line in extras[extra]
        ),
    ]
    # setuptools also builds the package, in environments that constraints do not reach; the rest is for other systems.
    # An extra may name another one, of this package.
    unpinned = {requirement_name(line) for line in wanted if "!=" not in line} - pins - {"setuptools", "attnserve"}
    assert not unpinned, "add them to constraints.txt: CI would install whatever is newest"


@dataclass(frozen=True, kw_only=True)
class Built:
    sdist: Path
    wheel: Path
    wheel_from_sdist: Path


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    # In a copy: building writes build/lib and egg-info beside the sources, and packs what an earlier build left there.
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ROOT_FILES:
        shutil.copy(ROOT / name, tree)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = (sys.executable, "-m", "build", "--no-isolation")
    run(*build, "--outdir", out / "both", cwd=tree)
    run(*build, "--outdir", out / "wheel", "--wheel", cwd=tree)
    (sdist,) = (out / "both").glob("*.tar.gz")
    (wheel_from_sdist,) = (out / "both").glob("*.whl")
    (wheel,) = (out / "wheel").glob("*.whl")
    return Built(sdist=sdist, wheel=wheel, wheel_from_sdist=wheel_from_sdist)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.packaging
def test_wheel_holds_every_module_under_one_name(built):
    names = set(contents(built.wheel))
    version = importlib.import_module("attnserve").__version__
    assert {name.split("/")[0] for name in names} == {"attnserve", f"attnserve-{version}.dist-info"}
    assert "attnserve/py.typed" in names
    expected = {
        "/".join([*package.split("."), path.relative_to(ROOT / folder).as_posix()])
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == expected
    page = {
        f"attnserve/service/viewer/{path.name}" for path in (ROOT / "service" / "viewer").iterdir() if path.is_file()
    }
    assert page <= names


@pytest.mark.packaging
def test_wheel_of_the_sdist_is_the_same(built):
    assert contents(built.wheel_from_sdist) == contents(built.wheel)


@pytest.mark.packaging
def test_sdist_holds_what_a_build_needs(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert names >= {*ROOT_FILES, *(f"{folder}/__init__.py" for folder in FOLDERS.values())}


@pytest.mark.packaging
def test_wheel_serves_without_torch(built, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built.wheel, cwd=tmp_path)
    # Dependencies are read from this environment; a path, unlike a site folder, brings no editable install with it.
    env = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    script = """
import sys
for name in ("torch", "onnx", "onnxscript", "tqdm", "jaxtyping", "aiohttp", "opentelemetry"):
    sys.modules[name] = None
import attnserve.cli, attnserve.service
print(attnserve.__file__, attnserve.service.__file__, sep="\\n")
"""
    files = run(python, "-c", script, cwd=tmp_path, env=env).split()
    assert all(Path(file).is_relative_to(tmp_path) for file in files), files
    assert "serve" in run(tmp_path / "env" / "bin" / "attnserve", "--help", cwd=tmp_path, env=env)
