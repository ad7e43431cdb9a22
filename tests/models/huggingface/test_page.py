"""docs/huggingface.md shows what happens, and names every class that is held to transformers."""

import re
from pathlib import Path

import pytest

from tests.models.huggingface import zoo

PAGE = (Path(__file__).parents[3] / "docs" / "huggingface.md").read_text("utf-8")


@pytest.mark.parametrize("index", [0, 1], ids=["inspect", "patches"])
def test_its_examples_print_what_they_say(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    block = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[index]
    exec(compile(block, "huggingface.md", "exec", dont_inherit=True), {"__name__": "example"})
    assert f"# {capsys.readouterr().out}" in block


@pytest.mark.parametrize("name", zoo.MODELS)
def test_it_names_every_family(name: str) -> None:
    family = re.split("For|LMHead", name)[0]
    table = PAGE.split("| family | heads |")[1].split("\n\n")[0]
    assert re.search(rf"\b{family}\b", table)
