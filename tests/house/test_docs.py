"""Pages name files and words; files move and words change."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attnserve.models import load_checkpoint
from attnserve.models.attention.table import variants_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for folder in ("docs", "examples") for page in sorted((ROOT / folder).rglob("*.md"))),
]
OURS = "attnserve|benchmarks|checkpoints|docs|examples|export|gateway|kernels|models|results|service|soak|tests|worker"
# The variant that CONTRIBUTING.md adds.
EXAMPLE = "cosine"


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_named_files_exist(page):
    named = re.findall(rf"`((?:{OURS})/[\w./-]*)`", page.read_text("utf-8"))
    missing = [name for name in named if EXAMPLE not in name and not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


def test_make_words_are_explained():
    words = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    explained = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    assert explained == words - {"help"}


def test_the_table_of_variants_is_the_one_the_code_prints():
    page = (ROOT / "docs" / "attention.md").read_text("utf-8")
    table = page.split("<!-- variants -->\n")[1].split("<!-- /variants -->")[0]
    assert table == variants_table()


@pytest.mark.parametrize(
    "packages", [(), ("lightning",), ("transformers", "accelerate")], ids=lambda packages: "-".join(packages) or "torch"
)
def test_training_loops_run(packages, tmp_path):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    blocks = dict(re.findall(r"^```python ?(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert set(blocks) == {"", "lightning", "transformers"}
    program = "\n".join(blocks[word] for word in ("", *packages[:1]))
    # A process of its own: other people's trainers set up logging, signals and warnings as they like.
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [load_checkpoint(folder).model.config.width for folder in tmp_path.glob("checkpoints/*")] == [16] * bool(
        packages
    )


@pytest.mark.parametrize("name", ["attention.md"])
def test_examples_run(name):
    page = (ROOT / "docs" / name).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    # One program, as it reads: later examples use names of earlier ones.
    program = compile("\n".join(blocks), name, "exec", dont_inherit=True)
    names = {"__name__": "example"}
    exec(program, names)
    # What the comments and the text around the code promise.
    assert names["packed"].slots.tolist() == [[0, 1, 2], [3, 6, 6], [4, 5, 6]]
    assert [len(part) for part in (names["first"], names["second"], names["third"])] == [3, 1, 2]
    assert names["embedding"].weight.grad.isfinite().all()
    assert names["y"].shape == (2, 5, 32)
    # Padding attends to nothing, so all it has is the bias of the projection after.
    torch.testing.assert_close(names["y"][1, 2:], names["attention"].output.bias.expand(3, -1))
    assert names["x"].shape == (6, 32)
