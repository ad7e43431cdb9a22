"""Questions about attention against a running service: comparisons, ablations, dry runs, and every quantity as tensors.

What each number is, `tests/service/test_attention.py` says; here it is asked over HTTP.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from attnserve.service.schemas import Plan
from tests.conftest import Served, run_export

pytestmark = pytest.mark.http

SAFETENSORS = "application/x-safetensors"
SEQUENCES = [[1, 2, 3, 1, 2, 3, 4, 1], [5, 5, 5]]
QUANTITIES = ["diagnostics", "weights", "signed", "scores", "weighted", "received", "rollout", "qk", "metric"]


@pytest.fixture(scope="module")
def twins(
    bundles: Path, checkpoint: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """`tiny`, and beside it the same weights with another attention."""
    repository = tmp_path_factory.mktemp("twins")
    shutil.copytree(bundles / "tiny", repository / "tiny")
    run_export(checkpoint, repository / "other" / "1", "--twin", "dot_product")
    with start_server(repository) as served:
        yield served


def ask_tensors(server: Served, body: dict[str, Any], **options: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    response = server.post("attention", body, headers={"Accept": SAFETENSORS}, **options)
    assert response.status_code == 200, response.text
    size = int.from_bytes(response.content[:8], "little")
    header = json.loads(response.content[8 : 8 + size])
    return load(response.content), json.loads(header["__metadata__"]["answer"])


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_is_what_the_dry_run_says(server, quantity):
    body = {"sequences": SEQUENCES, "quantity": quantity, "queries": [0, -1], "heads": [1]}
    plan = server.ask("attention", {**body, "dry_run": True})
    Plan.model_validate(plan, strict=True)
    tensors, answer = ask_tensors(server, body)
    assert tensors.keys() == plan["tensors"].keys()
    for name, tensor in tensors.items():
        described = plan["tensors"][name]
        assert (list(tensor.shape), tensor.dtype.name, tensor.nbytes) == (
            described["shape"],
            described["dtype"],
            described["bytes"],
        )
        assert answer["axes"][name.split(".", 2)[2]] == described["axes"]
    assert plan["num_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert plan["lengths"] == [8, 3]
    assert plan["refused"] == {"json": None, "tensors": None}
    assert (plan["num_passes"], plan["forward_seconds"] > 0) == (1, True)
    in_json = server.ask("attention", body)
    assert {name: value for name, value in in_json.items() if name in answer} == answer
    assert (
        list(in_json.keys() - answer.keys())
        == (["diagnostics", "layer_diagnostics"] if quantity == "diagnostics" else ["maps"])
        or {"diagnostics", "layer_diagnostics"} == in_json.keys() - answer.keys()
    )


def test_a_dry_run_says_why_an_answer_would_be_refused(server):
    body = {"sequences": [[1] * 320] * 200, "quantity": "weights", "dry_run": True}
    plan = server.ask("attention", body)
    Plan.model_validate(plan, strict=True)
    assert plan["num_numbers"] == 200 * 6 * 320 * 320
    assert "a JSON answer may hold at most 65536 numbers" in plan["refused"]["json"]
    assert "an answer may hold at most" in plan["refused"]["tensors"]
    refused = server.post("attention", {**body, "dry_run": False})
    assert refused.json()["detail"] == plan["refused"]["json"]


def test_a_dry_run_needs_no_forward_pass(server):
    response = server.post("attention", {"sequences": [[1]], "dry_run": True})
    assert "compute" not in response.headers.get("Server-Timing", "")


def test_queries_and_keys_recompute_the_map(server):
    body = {"sequences": [SEQUENCES[0]], "layers": [1]}
    qk, _ = ask_tensors(server, {**body, "quantity": "qk"})
    weights, _ = ask_tensors(server, {**body, "quantity": "weights"})
    layer = server.client.get("/v1/models/tiny").json()["layers"][1]
    z = layer["scale"] * np.einsum("hqe,hke->hqk", *(qk[f"sequences.0.layers.1.{kind}"] for kind in ("query", "key")))
    u = np.tril(z**2 / (1 + z**2))
    found = u / (qk["sequences.0.layers.1.normaliser"][..., None] + layer["epsilon"])
    np.testing.assert_allclose(found, weights["sequences.0.weights"][0], atol=1e-6)
    weighted, _ = ask_tensors(server, {**body, "quantity": "weighted"})
    expected = found * qk["sequences.0.layers.1.value_norm"][:, None]
    np.testing.assert_allclose(weighted["sequences.0.weighted"][0], expected, rtol=1e-4, atol=1e-6)


def test_only_elliptical_layers_have_a_metric(server):
    tensors, _ = ask_tensors(server, {"sequences": [SEQUENCES[0]], "quantity": "metric"})
    assert list(tensors) == ["sequences.0.layers.2.metric"]
    # Scaled by its mean.
    np.testing.assert_allclose(tensors["sequences.0.layers.2.metric"].mean(-1), 1, rtol=1e-5)
    refused = server.post("attention", {"sequences": [[1]], "quantity": "metric", "layers": [0, 1]})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "quantity"


def test_switching_heads_off_is_what_torch_does_without_them(server, checkpoint):
    import torch

    from attnserve.models.attention.recording import scaled_heads
    from attnserve.models.checkpoint import load_checkpoint

    body = {"sequences": SEQUENCES, "positions": [0, -1], "top_k": 20, "ablate": [[0, 1], [2, 0]], "queries": "last"}
    answer = server.ask("attention", body)
    model = load_checkpoint(checkpoint).model.double()
    scale = torch.ones(3, 2)
    scale[0, 1] = scale[2, 0] = 0
    with torch.no_grad():
        before = [logits[[0, -1]] for logits in model.predict(SEQUENCES)]
        with scaled_heads(model, scale):
            after = [logits[[0, -1]] for logits in model.predict(SEQUENCES)]
    ablation = answer["ablation"]
    assert ablation["heads"] == [[0, 1], [2, 0]]
    for index in range(2):
        prediction = ablation["predictions"][index]
        assert prediction["positions"] == [0, len(SEQUENCES[index]) - 1]
        for row, top in enumerate(prediction["top"]):
            logits = {entry["id"]: entry["logit"] for entry in top}
            np.testing.assert_allclose([logits[name] for name in range(20)], after[index][row], atol=1e-4)
        first, second = before[index].softmax(-1), after[index].softmax(-1)
        likeliest = before[index].argmax(-1, keepdim=True)
        change = ablation["changes"][index]
        bits = (first * (first / second).log2()).sum(-1)
        np.testing.assert_allclose(change["bits"], bits, atol=1e-5)
        for name, gain in (("probability", second - first), ("logit", after[index] - before[index])):
            np.testing.assert_allclose(change[name], gain.gather(-1, likeliest)[:, 0], atol=1e-4)
    # What is shown is of the pass with all heads.
    plain = server.ask("attention", {name: value for name, value in body.items() if name != "ablate"})
    assert plain == {name: value for name, value in answer.items() if name != "ablation"}


def test_the_importance_of_a_head_is_what_its_ablation_changes(server):
    body = {"sequences": SEQUENCES, "positions": [1, -1], "queries": "last"}
    answer = server.ask("attention", {**body, "diagnostics": ["sink", "importance"], "layers": [2, 0]})
    assert len(answer["diagnostics"]) == 2 * 2 * 2
    for entry in answer["diagnostics"]:
        alone = server.ask("attention", {**body, "ablate": [[entry["layer"], entry["head"]]]})["ablation"]
        change = alone["changes"][entry["sequence"]]
        assert entry["importance_bits"] == pytest.approx(np.mean(change["bits"]), abs=1e-6)
        assert entry["importance_logit"] == pytest.approx(-np.mean(change["logit"]), abs=1e-5)
        assert entry["sink"] > 0


def jensen_shannon(first, second):
    middle = (first + second) / 2
    parts = [
        np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / np.where(p > 0, middle, 1)), 0) for p in (first, second)
    ]
    return sum(parts).sum(-1) / 2


def test_another_input_beside_the_first(server):
    others = [[1, 2, 9, 1, 2, 3, 4, 1], [5, 6, 5]]
    body = {"sequences": SEQUENCES, "quantity": "weights", "layers": [2, 0], "positions": [2, -1]}
    tensors, answer = ask_tensors(server, {**body, "compare": {"sequences": others}})
    alone, other = ask_tensors(server, {**body, "sequences": others})
    compared = answer["comparison"]
    assert (compared["model"], compared["version"]) == ("tiny", 1)
    assert compared["tokens"] == other["tokens"]
    for index in range(2):
        mine, theirs = tensors[f"sequences.{index}.weights"], tensors[f"sequences.{index}.comparison.weights"]
        np.testing.assert_allclose(theirs, alone[f"sequences.{index}.weights"], atol=1e-6)
        sums = [maps / maps.sum(-1, keepdims=True) for maps in (mine.astype(float), theirs.astype(float))]
        bits = jensen_shannon(*sums).mean(-1)
        np.testing.assert_allclose(tensors[f"sequences.{index}.divergence_bits"], bits, atol=1e-5)
    # The future of step 2 differs, but no map up to it.
    assert compared["prediction_divergence_bits"][0][0] > 0
    in_json = server.ask("attention", {**body, "compare": {"sequences": others}})["comparison"]
    assert [entry["layer"] for entry in in_json["maps"]] == [2, 2, 0, 0] * 2
    assert [entry["bits"] for entry in in_json["divergences"]] == [
        pytest.approx(value) for index in range(2) for value in tensors[f"sequences.{index}.divergence_bits"].ravel()
    ]


def test_both_sides_of_a_comparison_switch_heads_off(server):
    body = {"sequences": [SEQUENCES[0]], "diagnostics": ["importance", "sink"], "layers": [1]}
    others = [[9, 8, 7, 6, 5, 4, 3, 2]]
    compared = server.ask("attention", {**body, "compare": {"sequences": others}})
    alone = server.ask("attention", {**body, "sequences": others})
    assert compared["diagnostics"] == server.ask("attention", body)["diagnostics"]
    for found, expected in zip(compared["comparison"]["diagnostics"], alone["diagnostics"], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_an_input_beside_itself_does_not_diverge(server):
    for quantity in ("diagnostics", "weights", "rollout"):
        body = {"sequences": SEQUENCES, "quantity": quantity, "compare": {"sequences": SEQUENCES}}
        answer = server.ask("attention", body)
        assert all(entry["bits"] < 1e-6 for entry in answer["comparison"]["divergences"])
        assert np.ravel(answer["comparison"]["prediction_divergence_bits"][0]).max() < 1e-6
        name = "diagnostics" if quantity == "diagnostics" else "maps"
        assert len(answer["comparison"][name]) == len(answer[name])


def test_a_twin_beside_its_model(twins):
    models = {model["name"]: model for model in twins.client.get("/v1/models").json()["models"]}
    assert models.keys() == {"tiny", "other", "other-dot-product"}
    assert models["other-dot-product"]["variants"] == ["dot_product"]
    body = {"sequences": SEQUENCES, "compare": {"model": "other-dot-product"}}
    answer = twins.ask("attention", body)
    compared = answer["comparison"]
    assert compared["variants"] == ["dot_product"] * 3
    assert "with the weights of other attention" in " ".join(compared["warnings"])
    bits = {entry["layer"]: entry["bits"] for entry in compared["divergences"]}
    # The first layer is dot-product on both sides and reads the same; the second is expressive on one.
    assert bits[0] < 1e-9 < 1e-3 < bits[1]
    rolled = twins.ask("attention", {**body, "quantity": "rollout", "queries": "last"})["comparison"]
    assert len(rolled["divergences"]) == 2
    assert 0 < rolled["divergences"][0]["bits"] < 1


def test_a_version_that_is_not_served_is_loaded_to_compare_with(bundles, start_server, tmp_path):
    for version in ("1", "2", "3"):
        shutil.copytree(bundles / "tiny" / "1", tmp_path / "tiny" / version)
    (tmp_path / "tiny" / "3" / "model.onnx").write_bytes(b"damaged")
    (tmp_path / "tiny" / "aliases.json").write_text('{"active": 2}')
    with start_server(tmp_path) as served:
        answer = served.ask("attention", {"sequences": SEQUENCES, "compare": {"version": 1}})
        assert (answer["version"], answer["comparison"]["version"]) == (2, 1)
        assert answer["comparison"]["diagnostics"] == answer["diagnostics"]
        itself = served.ask("attention", {"sequences": SEQUENCES, "compare": {"model": "tiny", "version": 2}})
        assert (itself["version"], itself["comparison"]["version"]) == (2, 2)
        for version, words in (
            (4, "expected one of [1, 2, 3], got 4"),
            (3, "version 3 cannot be served: tiny/3/model.onnx: expected sha256"),
        ):
            response = served.post("attention", {"sequences": SEQUENCES, "compare": {"version": version}})
            assert response.status_code == 422
            assert response.json()["errors"][0]["field"] == "compare.version"
            assert words in response.json()["detail"]
            assert str(tmp_path) not in response.text
        # Nobody else is answered by it, and what is served does not know of it.
        assert served.client.get("/v1/models/tiny/versions/1").status_code == 404
        assert [model.get("reason") for model in served.client.get("/v1/models").json()["models"]] == [None]


def test_what_no_model_can_be_compared_with(twins):
    for model, message in (("nope", "expected one of other"), ("", "expected one of other")):
        response = twins.post("attention", {"sequences": [[1]], "compare": {"model": model}})
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "compare.model"
        assert message in response.json()["detail"]
    response = twins.post("predict", {"sequences": [[1]], "attention": {"compare": {"model": "nope"}}})
    assert response.json()["errors"][0]["field"] == "attention.compare.model"


def test_models_of_other_shapes_are_no_counterpart(broad):
    for other, what in (("tagger", "layers"), ("leading", "heads"), ("nope", "expected one of")):
        body = {"sequences": ["the cat"], "compare": {"model": other}}
        response = broad.post("attention", body, model="text")
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "compare.model"
        assert what in response.json()["detail"]


def test_words_of_a_text(broad):
    text = "the cat at the cat"
    body = {"sequences": [text], "quantity": "weights", "reduce": {"tokens": "word"}, "special_tokens": "drop"}
    answer = broad.ask("attention", body, model="tagger")
    (words,) = answer["words"]
    assert [word["text"] for word in words] == [*text.split(), "<end>"]
    assert answer["query_words"] == answer["key_words"] == [[0, 1, 2, 3, 4]]
    tokens = answer["tokens"][0]
    for word in words:
        first, end = word["steps"]
        joined = "".join(token["text"] for token in tokens[first:end]).strip()
        assert joined == word["text"]
    weights = np.array(answer["maps"][0]["weights"])
    assert weights.shape == (5, 5)
    assert (weights.sum(1) < 1).all()


def test_words_that_stand_for_keys_of_a_few_entries(broad):
    body = {"sequences": ["the cat at the cat"], "quantity": "weights", "queries": "last", "top_keys": 2, "layers": [0]}
    answer = broad.ask("attention", {**body, "reduce": {"tokens": "word"}}, model="text")
    (entry, *_) = answer["maps"]
    assert len(entry["keys"][0]) == len(entry["weights"][0]) == 2
    assert set(entry["keys"][0]) <= set(answer["key_words"][0])
    assert entry["kept_mass"][0] == pytest.approx(sum(entry["weights"][0]), abs=1e-6)


def test_special_tokens_are_a_diagnostic(broad):
    answer = broad.ask("attention", {"sequences": ["the cat"], "diagnostics": ["special"]}, model="tagger")
    weights = broad.ask("attention", {"sequences": ["the cat"], "quantity": "weights"}, model="tagger")
    for measured, entry in zip(answer["diagnostics"], weights["maps"], strict=True):
        assert measured["special"] == pytest.approx(np.array(entry["weights"])[:, -1].mean(), abs=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"quantity": "weights", "layers": [0], "heads": [0]},
        {"quantity": "rollout"},
        {"quantity": "received", "reduce": {"heads": "mean"}},
        {"quantity": "scores", "pairs": [[0, 0], [2, 1]]},
        {"quantity": "signed", "reduce": {"layers": "mean"}},
    ],
    ids=str,
)
def test_pictures_of_what_is_a_map(server, fields):
    response = server.post("attention", {"sequences": [SEQUENCES[0]], **fields}, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    assert response.content.startswith(b"\x89PNG")


@pytest.mark.parametrize("fields", [{}, {"quantity": "qk"}, {"quantity": "weights", "top_keys": 2}], ids=str)
def test_no_pictures_of_what_is_none(server, fields):
    response = server.post("attention", {"sequences": [SEQUENCES[0]], **fields}, headers={"Accept": "image/png"})
    assert response.status_code == 406


def test_predict_takes_every_question_too(server):
    question = {"quantity": "rollout", "queries": "last", "ablate": [[0, 0]], "compare": {"sequences": [[1, 2]]}}
    answer = server.ask("predict", {"sequences": [[1, 2]], "attention": question})
    assert answer == server.ask("attention", {"sequences": [[1, 2]], **question})
    assert {"ablation", "comparison", "maps"} < answer.keys()
