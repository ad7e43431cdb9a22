"""The same model with a graph that chooses the likeliest entries, and with one that does not: the same answers."""

import json
import shutil

import numpy as np
import pytest

from attnserve.bundle import LOGITS
from tests.chosen import copy_with_top

pytestmark = pytest.mark.http

K = 4
SEQUENCES = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3, 5]]
# What a float64 sum and one of float32 exponentials may differ by.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def both(bundles, start_server, tmp_path_factory):
    repository = tmp_path_factory.mktemp("both")
    shutil.copytree(bundles / "tiny" / "1", repository / "plain" / "1")
    copy_with_top(bundles / "tiny" / "1", repository / "choosing" / "1", K)
    with start_server(repository) as served:
        yield served
    assert "Traceback" not in served.log.read_text()


def assert_same(found, expected):
    """Equal, but for probabilities and the model's name."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"model"}:
            if name == "probability":
                assert found[name] == pytest.approx(expected[name], rel=CLOSE, abs=0)
            else:
                assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def ask_both(served, route, body):
    found, expected = (served.ask(route, body, model=name) for name in ("choosing", "plain"))
    assert_same(found, expected)
    return found


@pytest.mark.parametrize("top_k", [1, K - 1, K, K + 1, 20])
@pytest.mark.parametrize("positions", ["last", "all", [0]])
def test_predictions(both, top_k, positions):
    answer = ask_both(both, "predict", {"sequences": SEQUENCES, "top_k": top_k, "positions": positions})
    assert {len(entries) for one in answer["predictions"] for entries in one["top"]} == {top_k}


def test_predictions_by_default(both):
    ask_both(both, "predict", {"sequences": SEQUENCES})


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_k": K}, {"temperature": 2}], ids=["top", "K", "all"])
def test_continuations(both, how):
    ask_both(both, "predict", {"sequences": SEQUENCES, "continue": 6, "seed": 5, **how})


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"ablate": [[0, 1]]},
        {"diagnostics": ["importance", "entropy"]},
        {"quantity": "weights", "top_k": K + 1},
        {"compare": {"sequences": [sequence[::-1] for sequence in SEQUENCES]}},
    ],
    ids=["diagnostics", "ablation", "importance", "more", "comparison"],
)
def test_questions_about_attention(both, question):
    ask_both(both, "attention", {"sequences": SEQUENCES, **question})


@pytest.mark.parametrize(("model", "other"), [("choosing", "plain"), ("plain", "choosing")])
def test_they_are_compared_by_all_logits(both, model, other):
    answer = both.ask("attention", {"sequences": SEQUENCES, "compare": {"model": other}}, model=model)
    assert answer["comparison"]["prediction_divergence_bits"] == [[0.0]] * 3


def test_captures(both):
    answers = []
    for model in ("choosing", "plain"):
        response = both.post("captures", {"sequences": SEQUENCES[:1]}, model=model)
        assert response.status_code == 201, response.text
        answers.append(response.json())
    assert_same(*(answer["predictions"] for answer in answers))


def test_tensors_are_all_logits(both):
    steps = SEQUENCES[0]
    inputs = [{"name": "tokens", "datatype": "INT64", "shape": [1, len(steps)], "data": steps}]
    for outputs in ([LOGITS], [LOGITS, "layers.0.query"], ["layers.0.query"]):
        body = {"inputs": inputs, "outputs": [{"name": name} for name in outputs]}
        found, expected = (
            both.client.post(f"/v2/models/{name}/infer", content=json.dumps(body)) for name in ("choosing", "plain")
        )
        assert found.status_code == 200, found.text
        for one, other in zip(found.json()["outputs"], expected.json()["outputs"], strict=True):
            assert one == other
            assert np.isfinite(one["data"]).all()


def test_how_many_it_chooses_can_be_had(both):
    described = {name: both.client.get(f"/v1/models/{name}").json() for name in ("choosing", "plain")}
    assert {name: one["top_k"] for name, one in described.items()} == {"choosing": K, "plain": None}


def test_less_memory_is_held_where_it_chooses(both):
    # A dry run says what a request holds.
    question = {"sequences": SEQUENCES, "positions": "all", "top_k": K, "dry_run": True}
    held = {name: both.ask("attention", question, model=name)["held_bytes"] for name in ("choosing", "plain")}
    num_positions = sum(map(len, SEQUENCES))
    assert held["plain"] - held["choosing"] == num_positions * (4 * 20 - 12 * (K + 1))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_what_overflows_is_refused_without_logits(broad, top_k):
    body = {"sequences": [[[1, 2, 3]], [[1e12, -1e12, 1e12]] * 9], "top_k": top_k}
    response = broad.post("predict", body, model="halves")
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "sequences[1]")
