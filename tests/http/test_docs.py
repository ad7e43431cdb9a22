"""docs/api.md and docs/attention-api.md: requests work, answers are as shown, tables are those of the code."""

import json
import re
from pathlib import Path

import pytest

from attnserve.service.attention import MAX_ABLATIONS, MAX_WEIGHTS
from attnserve.service.diagnostics import diagnostics_table
from attnserve.service.problems import problems_table
from attnserve.service.question import FIELDS, QUANTITIES, REDUCED
from attnserve.service.selection import MAX_ENTRIES
from attnserve.service.settings import Settings

pytestmark = pytest.mark.http

DOCS = Path(__file__).resolve().parents[2] / "docs"
API, ATTENTION = (DOCS.joinpath(name).read_text("utf-8") for name in ("api.md", "attention-api.md"))
# A request, and the next answer.
EXAMPLE = re.compile(r"^```http\n(\w+) (\S+)\n(.*?)^```$.*?^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
*EXAMPLES, ERROR = EXAMPLE.findall(API)
EXAMPLES += EXAMPLE.findall(ATTENTION)


def shape_of(value):
    """Names and kinds, without the numbers of one model; of lists, the first item stands for all."""
    if isinstance(value, dict):
        return {name: shape_of(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item) for item in value[:1]]
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def test_there_are_examples():
    assert len(EXAMPLES) == 3 + 3


@pytest.mark.parametrize(("method", "path", "body", "shown"), EXAMPLES, ids=[path for _, path, _, _ in EXAMPLES])
def test_requests_are_answered_as_shown(server, method, path, body, shown):
    # The models of the page know s0 to s7, the one of the tests a to t.
    body = re.sub(r'"s(\d)"', lambda match: f'"{"abcdefgh"[int(match[1])]}"', body)
    response = server.client.request(method, re.sub("nt-[a-z]+", "tiny", path), content=body)
    assert response.status_code == 200, response.text
    assert shape_of(response.json()) == shape_of(json.loads(shown))


def test_the_error_is_the_one_shown(server):
    method, path, body, shown = ERROR
    response = server.client.request(method, re.sub("nt-[a-z]+", "tiny", path), content=body)
    assert response.status_code == 422
    assert response.json() == json.loads(shown.replace("0 to 7", "0 to 19"))


def test_every_field_is_explained(server):
    sequences = [[1, 2, 3]]
    compared = {"ablate": [[0, 0]], "compare": {"sequences": sequences}, "keys": [0]}
    answer = server.ask("predict", {"sequences": sequences, "attention": {"quantity": "weights", **compared}})
    measured = server.ask("attention", {"sequences": sequences, "diagnostics": "all"})
    cut = server.ask("attention", {"sequences": sequences, "quantity": "weights", "top_keys": 1, "pairs": [[0, 0]]})
    plan = server.ask("attention", {"sequences": sequences, "dry_run": True})
    names = {
        *answer,
        *answer["predictions"][0],
        *answer["predictions"][0]["top"][0][0],
        *answer["maps"][0],
        *answer["ablation"],
        *answer["ablation"]["changes"][0],
        *answer["comparison"],
        *answer["comparison"]["divergences"][0],
        *measured,
        *measured["diagnostics"][0],
        *measured["layer_diagnostics"][0],
        *cut,
        *cut["maps"][0],
        *plan,
        *server.client.get("/v1/models").json()["models"][0],
        *server.client.get("/v1/models/tiny").json(),
        *server.client.get("/nope").json(),
    }
    assert not {name for name in names if f"`{name}`" not in API + ATTENTION}


def test_every_quantity_and_field_of_a_question_is_explained():
    assert not {name for name in (*QUANTITIES, *FIELDS) if f"`{name}`" not in ATTENTION}
    for quantity, fields in REDUCED.items():
        (row,) = re.findall(rf"^\| [^|]*`{quantity}`[^|]* \| (`layers`.*|`heads`.*) \|$", ATTENTION, re.MULTILINE)
        assert tuple(re.findall("`([a-z]+)`", row)) == fields


def test_the_table_of_diagnostics_is_the_one_the_code_prints():
    assert ATTENTION.split("<!-- diagnostics -->\n")[1].split("<!-- /diagnostics -->")[0] == diagnostics_table()


def test_every_route_is_listed(server):
    paths = server.client.get("/openapi.json").json()["paths"]
    table = API.partition("| route | does |")[2].partition("\n\n")[0]
    listed = table.replace("`.../attention`", "`/v1/models/{model}/versions/{version}/attention`")
    assert not [path for path in paths if path not in listed]


def test_the_table_of_problems_is_the_one_the_code_prints():
    assert API.split("<!-- problems -->\n")[1].split("<!-- /problems -->")[0] == problems_table()


def test_limits_are_those_of_the_code():
    limits = API.partition("## Limits")[2]
    settings = Settings()
    for number in (MAX_ENTRIES, MAX_WEIGHTS, MAX_ABLATIONS):
        assert f"{number:,}" in limits
    assert f"{settings.max_body_bytes // 2**20} MiB | `--max-body-bytes`" in limits
    assert f"{settings.max_response_bytes // 2**20} MiB | `--max-response-bytes`" in limits
    assert f"{settings.max_queue} | `--max-queue`" in limits
