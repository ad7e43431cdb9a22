"""docs/captures.md: its code runs, its answer has the fields of real ones, its routes are those there are."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from attnserve.service.captures.routes import router
from attnserve.service.captures.schemas import CaptureAnswer, CaptureBody

pytestmark = pytest.mark.http

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "captures.md").read_text("utf-8")


def test_the_code_runs(server):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {"url": server.url, "model": "tiny"}
    exec(compile(code, "docs/captures.md", "exec", dont_inherit=True), names)
    assert names["row"].shape == (1, 8)
    assert names["atlas"].shape == (3, 2, 8, 8)
    assert names["atlas"].dtype == np.float16
    np.testing.assert_allclose(names["tile"][-1], names["row"][0], atol=1e-6)


def test_the_answer_is_as_shown():
    (shown,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert CaptureAnswer.model_validate(json.loads(shown)).num_zooms == 1
    assert json.loads(shown).keys() == CaptureAnswer.model_fields.keys()


@pytest.mark.parametrize("name", [*CaptureBody.model_fields, *CaptureAnswer.model_fields])
def test_every_field_is_explained(name):
    assert f"`{name}`" in PAGE


def test_every_route_is_listed():
    table = PAGE.partition("| route | answers |")[2].partition("\n\n")[0]
    for route in router.routes:
        assert f"{route.path}`" in table, route.path
        assert "DELETE" not in route.methods or f"`DELETE {route.path}`" in table


def test_parameters_of_the_page_are_understood(server):
    made = server.client.post("/v1/models/tiny/captures", json={"sequences": [["c", "a", "t"]]}).json()
    lines = re.findall(r"^/v1/captures/2f0a\.\.\.(\S+)$", PAGE, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        # Of a model with two heads, and three steps.
        line = line.replace("heads=0,3", "heads=0,1").replace("10:20", "1:3").replace('"cat"', '"c"')
        response = server.client.get(f"/v1/captures/{made['id']}{line}")
        assert response.status_code == 200, response.text
