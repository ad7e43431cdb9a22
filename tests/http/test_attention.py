"""`POST /v1/models/{model}/attention`, and `attention` inside predict, against a running service."""

import io
import json
import math

import numpy as np
import pytest
from safetensors.numpy import load

pytestmark = pytest.mark.http

NUM_LAYERS, NUM_HEADS = 3, 2
VARIANTS = ["dot_product", "expressive", "elliptical"]
SAFETENSORS, NPZ = "application/x-safetensors", "application/x-npz"
MEASURES = (
    *("entropy_bits", "entropy_normalised", "distance", "sink", "self", "previous_token"),
    *("duplicate_token", "induction"),
)


@pytest.fixture(scope="module")
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def draw(random: np.random.Generator, *lengths: int) -> list[list[int]]:
    return [random.integers(0, 20, length).tolist() for length in lengths]


def ask_tensors(server, body: dict, *, accept: str = SAFETENSORS, route: str = "attention") -> tuple[dict, dict]:
    """Tensors and the JSON beside them."""
    response = server.post(route, body, headers={"Accept": accept})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == accept
    if accept == NPZ:
        with np.load(io.BytesIO(response.content), allow_pickle=False) as arrays:
            tensors = dict(arrays)
        return tensors, json.loads(tensors.pop("answer").tobytes())
    size = int.from_bytes(response.content[:8], "little")
    header = json.loads(response.content[8 : 8 + size])
    return load(response.content), json.loads(header["__metadata__"]["answer"])


def weights_of(answer: dict, sequence: int) -> np.ndarray:
    """[layers, heads, queries, keys] from the JSON maps."""
    maps = [entry["weights"] for entry in answer["maps"] if entry["sequence"] == sequence]
    stacked = np.array(maps, np.float32)
    return stacked.reshape(len(answer["layers"]), len(answer["heads"]), *stacked.shape[1:])


def test_defaults_are_cheap_diagnostics_of_everything(server):
    answer = server.ask("attention", {"sequences": [[1, 2, 3, 4], [5, 6]]})
    assert answer["quantity"] == "diagnostics"
    assert (answer["layers"], answer["heads"]) == ([0, 1, 2], [0, 1])
    assert answer["queries"] == [[0, 1, 2, 3], [0, 1]]
    assert answer["tokens"] == [
        [{"id": index, "text": "abcdefg"[index], "span": None} for index in ids] for ids in ([1, 2, 3, 4], [5, 6])
    ]
    assert (answer["variants"], answer["causal"], answer["warnings"]) == (VARIANTS, True, [])
    assert "maps" not in answer
    layers = [(entry["sequence"], entry["layer"]) for entry in answer["layer_diagnostics"]]
    assert layers == [(i, layer) for i in range(2) for layer in range(NUM_LAYERS)]
    assert all(-1 <= entry["collapse"] <= 1 for entry in answer["layer_diagnostics"])
    places = [(entry["sequence"], entry["layer"], entry["head"]) for entry in answer["diagnostics"]]
    assert places == [(i, layer, head) for i in range(2) for layer in range(NUM_LAYERS) for head in range(NUM_HEADS)]
    for entry in answer["diagnostics"]:
        assert set(entry) == {"sequence", "layer", "head", "variant", *MEASURES}
        assert entry["variant"] == VARIANTS[entry["layer"]]


def test_received_only_when_named(server):
    body = {"sequences": [[1, 2, 3]], "diagnostics": ["self", "received"], "layers": [1]}
    answer = server.ask("attention", body)
    for entry in answer["diagnostics"]:
        assert set(entry) == {"sequence", "layer", "head", "variant", "self", "received"}
        assert len(entry["received"]) == 3


@pytest.mark.parametrize("queries", ["all", "last", [0], [3, -2, 0]], ids=str)
def test_diagnostics_are_what_their_definitions_say(server, random, queries):
    sequences = draw(random, 9, 1, 4, 23) if queries in ("all", "last", [0]) else draw(random, 9, 5, 4, 23)
    body = {"sequences": sequences, "queries": queries}
    names = ["entropy", "distance", "sink", "previous_token", "self", "received"]
    given = server.ask("attention", {**body, "diagnostics": names})
    tensors, _ = ask_tensors(server, {**body, "quantity": "weights"})
    for entry in given["diagnostics"]:
        index, layer, head = entry["sequence"], entry["layer"], entry["head"]
        weights = tensors[f"sequences.{index}.weights"][layer, head].astype(float)
        expected = diagnose(weights, given["queries"][index])
        for name, value in expected.items():
            if isinstance(value, list):
                assert len(entry[name]) == len(value)
            for ours, theirs in zip(np.ravel(entry[name]), np.ravel(value), strict=True):
                assert (ours is None) == (theirs is None), (name, ours, theirs)
                assert ours is None or ours == pytest.approx(theirs, abs=2e-6, rel=1e-5), name


def diagnose(weights: np.ndarray, queries: list[int]) -> dict:
    """The definitions of service/attention.py, one number at a time, for a causal head."""
    rows = list(zip(queries, weights, strict=True))
    bits = {i: -sum(w * math.log2(w) for w in row if w > 0) for i, row in rows}
    several = [bits[i] / math.log2(i + 1) for i, _ in rows if i > 0]
    previous = [row[i - 1] for i, row in rows if i > 0]
    received = []
    for key in range(weights.shape[1]):
        seen = [row[key] for i, row in rows if key <= i]
        received.append(sum(seen) / len(seen) if seen else None)
    return {
        "entropy_bits": sum(bits[i] for i, _ in rows) / len(rows),
        "entropy_normalised": sum(several) / len(several) if several else None,
        "distance": sum(w * abs(i - j) for i, row in rows for j, w in enumerate(row)) / len(rows),
        "sink": sum(row[0] for _, row in rows) / len(rows),
        "previous_token": sum(previous) / len(previous) if previous else None,
        "self": sum(row[i] for i, row in rows) / len(rows),
        "received": received,
    }


def test_one_step_has_no_previous_token_and_no_spread(server):
    answer = server.ask("attention", {"sequences": [[7]], "diagnostics": ["entropy", "previous_token", "distance"]})
    for entry in answer["diagnostics"]:
        assert entry["entropy_normalised"] is None
        assert entry["previous_token"] is None
        assert (entry["entropy_bits"], entry["distance"]) == (pytest.approx(0, abs=0.01), 0)
    text = server.post("attention", {"sequences": [[7]], "layers": [0]}).text
    assert "NaN" not in text
    assert "-0.0" not in text


def test_weights_are_those_of_torch_in_float64(server, checkpoint, random):
    from attnserve.export.golden import answer
    from attnserve.models.checkpoint import load_checkpoint

    sequences = draw(random, 1, 2, 40, 320)
    model = load_checkpoint(checkpoint).model.double()
    tensors, _ = ask_tensors(server, {"sequences": sequences, "quantity": "weights"})
    for index, sequence in enumerate(sequences):
        truth = answer(model, model.config.interface, [np.array(sequence)]).maps[0].numpy().transpose(1, 2, 0, 3)
        weights = tensors[f"sequences.{index}.weights"]
        assert weights.shape == (NUM_LAYERS, NUM_HEADS, len(sequence), len(sequence))
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, truth, atol=1e-4, rtol=0)


def test_rows_sum_to_one_and_masked_keys_weigh_exactly_zero(server, random):
    answer = server.ask("attention", {"sequences": draw(random, 33, 2), "quantity": "weights"})
    for entry in answer["maps"]:
        weights = np.array(entry["weights"], np.float32)
        length = len(answer["tokens"][entry["sequence"]])
        assert weights.shape == (length, length)
        assert (weights[np.triu_indices(length, 1)] == 0).all()
        # Expressive attention divides by the sum plus epsilon, 0.001 in this model.
        slack = 0.05 if entry["layer"] == 1 else 1e-6
        assert (np.abs(weights.sum(1) - 1) < slack).all()
        assert (weights >= 0).all()


@pytest.mark.parametrize("accept", [SAFETENSORS, NPZ])
def test_tensors_and_json_are_the_same_bit_for_bit(server, random, accept):
    body = {
        "sequences": draw(random, 20, 7),
        "layers": [2, 0],
        "heads": [-1, 0],
        "queries": [-1, 0, 3],
        "quantity": "weights",
    }
    in_json = server.ask("attention", body)
    tensors, beside = ask_tensors(server, body, accept=accept)
    assert sorted(tensors) == ["sequences.0.weights", "sequences.1.weights"]
    assert beside == {name: value for name, value in in_json.items() if name != "maps"}
    for index in range(2):
        np.testing.assert_array_equal(tensors[f"sequences.{index}.weights"], weights_of(in_json, index))


@pytest.mark.parametrize("accept", [SAFETENSORS, NPZ])
def test_diagnostics_as_tensors(server, random, accept):
    body = {"sequences": draw(random, 6, 1), "diagnostics": ["entropy", "self", "received"], "heads": [1, 0]}
    in_json = server.ask("attention", body)
    tensors, _ = ask_tensors(server, body, accept=accept)
    assert len(tensors) == 2 * 4
    for entry in in_json["diagnostics"]:
        for name in ("entropy_bits", "entropy_normalised", "self", "received"):
            tensor = tensors[f"sequences.{entry['sequence']}.{name}"]
            assert tensor.dtype == np.float32
            value = tensor[entry["layer"], in_json["heads"].index(entry["head"])]
            if entry[name] is None:
                assert np.isnan(value)
            else:
                np.testing.assert_array_equal(value, np.array(entry[name], np.float32))


def test_order_asked_for_is_order_answered(server, random):
    (sequence,) = draw(random, 12)
    everything, _ = ask_tensors(server, {"sequences": [sequence], "quantity": "weights"})
    layers, heads, queries = [2, 0, 2], [1, 0], [11, 0, 4, 4]
    some, answer = ask_tensors(
        server,
        {
            "sequences": [sequence],
            "quantity": "weights",
            "layers": [-1, 0, 2],
            "heads": [-1, -2],
            "queries": [-1, -12, 4, -8],
        },
    )
    assert (answer["layers"], answer["heads"], answer["queries"]) == (layers, heads, [queries])
    assert answer["variants"] == [VARIANTS[layer] for layer in layers]
    expected = everything["sequences.0.weights"][np.ix_(layers, heads, queries)]
    # Not bit for bit: matrix products of other shapes round otherwise.
    np.testing.assert_allclose(some["sequences.0.weights"], expected, atol=1e-6, rtol=0)


def test_float16_when_asked_for(server, random):
    body = {"sequences": draw(random, 15), "quantity": "weights"}
    wide, _ = ask_tensors(server, body)
    narrow, _ = ask_tensors(server, {**body, "dtype": "float16"})
    assert narrow["sequences.0.weights"].dtype == np.float16
    np.testing.assert_array_equal(narrow["sequences.0.weights"], wide["sequences.0.weights"].astype(np.float16))


def test_predictions_are_those_of_predict(server, random):
    body = {"sequences": draw(random, 44, 3), "positions": [0, -1], "top_k": 20}
    plain = server.ask("predict", body)
    for quantity in ("diagnostics", "weights"):
        selection = {"queries": "last", "quantity": quantity, "layers": [1]}
        with_attention = server.ask("attention", {**body, **selection})
        assert with_attention["predictions"] == plain["predictions"]
        inside = server.ask("predict", {**body, "attention": selection})
        assert inside == with_attention
        assert {name: inside[name] for name in plain} == plain


def test_predict_carries_tensors_too(server, random):
    (sequence,) = draw(random, 8)
    body = {"sequences": [sequence], "quantity": "weights"}
    from_attention, answer = ask_tensors(server, body)
    from_predict, same = ask_tensors(
        server, {"sequences": [sequence], "attention": {"quantity": "weights"}}, route="predict"
    )
    assert answer == same
    np.testing.assert_array_equal(from_attention["sequences.0.weights"], from_predict["sequences.0.weights"])


def test_the_cap_of_json_numbers_is_exact(server, random):
    (sequence,) = draw(random, 256)
    body = {"sequences": [sequence], "layers": [0], "heads": [0], "quantity": "weights"}
    assert np.array(server.ask("attention", body)["maps"][0]["weights"]).shape == (256, 256)
    refused = server.post("attention", {**body, "sequences": [sequence, [1]]})
    assert refused.status_code == 413
    problem = refused.json()
    assert problem["errors"][0]["field"] == "queries"
    assert "65537" in problem["detail"]
    assert "application/x-safetensors" in problem["detail"]
    # The way out that the message names.
    tensors, _ = ask_tensors(server, {**body, "sequences": [sequence, [1]]})
    assert tensors["sequences.1.weights"].shape == (1, 1, 1, 1)


def test_naming_a_head_often_costs_one_computation(server):
    # A short body; ten thousand copies of the keys of 320 steps would be gigabytes.
    body = {"sequences": [[1] * 320], "heads": [0] * 10_000, "layers": [0], "queries": "last", "diagnostics": ["self"]}
    answer = server.ask("attention", body)
    assert len(answer["diagnostics"]) == 10_000
    assert len({entry["self"] for entry in answer["diagnostics"]}) == 1


@pytest.mark.parametrize(
    ("extra", "limit"),
    [
        ({"queries": [0] * 40_000, "sequences": [[1], [2]]}, "sequences x queries"),
        ({"sequences": [[1] * 320] * 60, "quantity": "weights"}, "safetensors"),
        ({"sequences": [[1] * 320] * 200, "heads": [0] * 3, "quantity": "weights"}, "safetensors"),
    ],
)
def test_too_much_is_refused_with_a_hint(server, extra, limit):
    response = server.post("attention", {"layers": "all", **extra})
    assert response.status_code == 413
    assert limit in response.json()["detail"]


def test_binary_answers_have_a_limit_too(server):
    # 200 sequences x 3 layers x 2 heads x 320 x 320 numbers are 491 MB.
    body = {"sequences": [[1] * 320] * 200, "quantity": "weights"}
    response = server.post("attention", body, headers={"Accept": SAFETENSORS})
    assert response.status_code == 413
    assert str(200 * 6 * 320 * 320 * 4) in response.json()["detail"]
    assert "float16" in response.json()["detail"]


def test_the_future_changes_no_map(server, random):
    (sequence,) = draw(random, 64)
    other = [*sequence[:30], *draw(random, 34)[0]]
    assert sequence != other
    body = {"layers": "all", "queries": list(range(30)), "quantity": "weights", "positions": list(range(30))}
    first, second = (ask_tensors(server, {**body, "sequences": [items]}) for items in (sequence, other))
    np.testing.assert_array_equal(first[0]["sequences.0.weights"], second[0]["sequences.0.weights"])
    assert first[1]["predictions"] == second[1]["predictions"]
