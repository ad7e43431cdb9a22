"""docs/client.md: its program runs, and it names every method there is."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from attnserve.client import Client
from tests.conftest import Served

pytestmark = pytest.mark.http

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "client.md").read_text("utf-8")


def test_the_program_of_the_page_runs(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {"url": server.url, "model": "tiny"}
    exec(compile("\n".join(blocks), "client.md", "exec", dont_inherit=True), names)
    names["client"].close()
    printed = capsys.readouterr().out.splitlines()
    best = names["predicted"].predictions[0].best
    assert printed[0] == f"{best.label} {best.probability}"
    # What the comments promise.
    assert printed[1] == "422 layers[0]"
    assert names["heads"]["entropy_bits"].shape == (3, 2)
    assert names["maps"]["weights"].shape == (1, 2, 1, 8)
    np.testing.assert_allclose(names["maps"]["weights"].sum(-1), 1, rtol=1e-5)
    shapes = {name: names[name].shape for name in ("last", "whole", "atlas", "corner", "entropy")}
    assert shapes == {
        "last": (1, 240),
        "whole": (240, 240),
        "atlas": (3, 2, 60, 60),
        "corner": (240, 240),
        "entropy": (3, 2),
    }
    assert names["qk"].query.shape[0] == 240


def test_every_method_is_on_the_page_with_its_arguments() -> None:
    methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    assert set(re.findall(r"`(\w+)\([a-z_, ]*\)`", PAGE)) == methods - {"close"}
    for name in ("api_key", "timeout_s", "max_wait_s", "compress", "timeout_ms"):
        assert f"`{name}" in PAGE
