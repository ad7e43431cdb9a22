"""An environment per peer, made from its pinned requirements and made again when they change."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import orjson

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIST_VERSIONS = """
import importlib.metadata, json, platform
found = {each.name.lower().replace("_", "-"): each.version for each in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **dict(sorted(found.items()))}))
"""


class EnvironmentFailed(Exception):
    """It could not be made."""


def make_environment(name: str, folder: Path) -> Path:
    """The environment's bin folder; its packages are installed unless they are there."""
    requirements = HERE / name / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    stamp = folder / name / ".installed"
    python = folder / name / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python.parent
    print(f"{name}: making its environment", file=sys.stderr, flush=True)
    shutil.rmtree(folder / name, ignore_errors=True)
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    commands = [
        (sys.executable, "-m", "venv", str(folder / name)),
        (*pip, "-r", str(requirements)),
    ]
    if name == "attnserve":
        # What is measured is this tree.
        commands.append((*pip, "--no-deps", "-e", str(ROOT)))
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise EnvironmentFailed(f"{name}: {' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}")
    stamp.write_text(wanted)
    return python.parent


def list_versions(bin_folder: Path) -> dict[str, str]:
    """Of Python and every package."""
    # -I: what is in the current folder is not installed.
    output = subprocess.run((bin_folder / "python", "-I", "-c", LIST_VERSIONS), check=True, capture_output=True)
    return orjson.loads(output.stdout)
