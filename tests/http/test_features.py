"""Models of feature vectors and of classes, over HTTP: the laws, the leading row, half precision, what overflows."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from tests.kinds import CLASSES, MAX_LENGTH, NUM_FEATURES

pytestmark = pytest.mark.http

SAFETENSORS = "application/x-safetensors"
# Of logits that differ by the order of additions alone.
TOLERANCE = {"leading": 1e-5, "halves": 4e-3}
NAMES = list(TOLERANCE)


def draw(*lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=(length, NUM_FEATURES)).astype(np.float32).tolist() for length in lengths]


def logits_of(answer) -> np.ndarray:
    """[sequences, classes] by class."""
    return np.array(
        [
            [entry["logit"] for entry in sorted(prediction["top"][0], key=lambda entry: entry["id"])]
            for prediction in answer["predictions"]
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_sequence_has_one_answer(broad, name):
    answer = broad.ask("predict", {"sequences": draw(1, 7, MAX_LENGTH)}, model=name)
    assert set(answer) == {"model", "version", "predictions", "warnings"}
    labels = dict(enumerate(CLASSES)) if name == "leading" else {}
    for prediction in answer["predictions"]:
        assert prediction["positions"] is None
        (entries,) = prediction["top"]
        assert sorted(entry["id"] for entry in entries) == list(range(3 if name == "leading" else 4))
        assert all(entry["label"] == labels.get(entry["id"]) for entry in entries)
        logits = [entry["logit"] for entry in entries]
        assert logits == sorted(logits, reverse=True)
        assert sum(entry["probability"] for entry in entries) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_batch_mates_and_their_order_do_not_matter(broad, name):
    sequences = draw(5, 60, 1, 17, 17, MAX_LENGTH)
    together = logits_of(broad.ask("predict", {"sequences": sequences}, model=name))
    backwards = logits_of(broad.ask("predict", {"sequences": sequences[::-1]}, model=name))[::-1]
    alone = np.concatenate([logits_of(broad.ask("predict", {"sequences": [one]}, model=name)) for one in sequences])
    np.testing.assert_allclose(together, alone, atol=TOLERANCE[name], rtol=0)
    np.testing.assert_allclose(backwards, alone, atol=TOLERANCE[name], rtol=0)
    assert len({tuple(row) for row in alone.round(2).tolist()}) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_spelling_of_a_number_does_not_matter(broad, name):
    bodies = (
        b'{"sequences": [[[1, -2, 0], [0.25, 1000, 3]]]}',
        b'{"sequences": [[[1.0, -2e0, -0.0], [25e-2, 1E+3, 3.00000000000000000001]]]}',
    )
    first, second = (broad.ask("predict", body, model=name) for body in bodies)
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_attention_shows_the_leading_row_if_there_is_one(broad, name):
    sequences = draw(4, 2)
    answer = broad.ask("attention", {"sequences": sequences, "quantity": "weights"}, model=name)
    extra = int(name == "leading")
    for tokens, sequence in zip(answer["tokens"], sequences, strict=True):
        texts = ["[cls]"] * extra + [None] * len(sequence)
        assert tokens == [{"id": None, "text": text, "span": None} for text in texts]
    assert answer["queries"] == [list(range(length + extra)) for length in (4, 2)]
    for entry in answer["maps"]:
        weights = np.array(entry["weights"])
        length = len(answer["tokens"][entry["sequence"]])
        assert weights.shape == (length, length)
        np.testing.assert_allclose(weights.sum(1), 1, atol=0.06 if name == "halves" else 1e-5)
    last = broad.ask("attention", {"sequences": sequences, "queries": "last"}, model=name)
    assert last["queries"] == [[3 + extra], [1 + extra]]


@pytest.mark.parametrize("name", NAMES)
def test_maps_do_not_depend_on_batch_mates(broad, name):
    sequences = draw(9, 30, 3)

    def maps(*chosen):
        body = {"sequences": list(chosen), "quantity": "weights"}
        response = broad.post("attention", body, model=name, headers={"Accept": SAFETENSORS})
        assert response.status_code == 200, response.text
        tensors = load(response.content)
        return [tensors[f"sequences.{index}.weights"] for index in range(len(chosen))]

    for sequence, together in zip(sequences, maps(*sequences), strict=True):
        np.testing.assert_allclose(together, maps(sequence)[0], atol=TOLERANCE[name], rtol=0)


@pytest.mark.parametrize(("name", "largest"), [("halves", 1e9)])
def test_what_overflows_inside_the_model_is_refused_by_name(broad, name, largest):
    sequences = [draw(6)[0], [[largest, -largest, largest]] * 9]
    for route in ("predict", "attention"):
        response = broad.post(route, {"sequences": sequences}, model=name)
        assert response.status_code == 422
        assert [fault["field"] for fault in response.json()["errors"]] == ["sequences[1]"]
    features = np.array([np.resize(sequence, (9, 3)) for sequence in sequences])
    tensor = {"name": "features", "datatype": "FP32", "shape": features.shape, "data": features.ravel().tolist()}
    response = broad.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["errors"]] == ["features[1]"]


WRONG = {
    "ids": ([1, 2], ["sequences[0][0]", "sequences[0][1]"]),
    "a text": ("cat", ["sequences[0]"]),
    "ragged": ([[1, 2, 3], [1, 2]], ["sequences[0][1]"]),
    "empty": ([], ["sequences[0]"]),
    "an empty vector": ([[]], ["sequences[0][0]"]),
    "true": ([[1, 2, True]], ["sequences[0][0][2]"]),
    "null": ([[1, None, 2]], ["sequences[0][0][1]"]),
    "a label": ([["low", 1, 2]], ["sequences[0][0][0]"]),
    "1e39": ([[1, 2, 1e39]], ["sequences[0][0][2]"]),
    "10**300": ([[1, 2, 10**300]], ["sequences[0][0][2]"]),
    "too long": ([[1, 2, 3]] * (MAX_LENGTH + 1), ["sequences[0]"]),
}


@pytest.mark.parametrize(("sequence", "fields"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_named(broad, name, sequence, fields):
    response = broad.post("predict", json.dumps({"sequences": [sequence]}).encode(), model=name)
    assert response.status_code == 422, response.text
    assert [fault["field"] for fault in response.json()["errors"]] == fields
    assert len(response.content) < 10_000


@pytest.mark.parametrize("number", [b"1e400", b"1" + b"0" * 400, b"NaN", b"Infinity", b"1.", b".5", b"+1", b"0x1"])
def test_what_is_no_number_of_json_is_no_json(broad, number):
    response = broad.post("predict", b'{"sequences": [[[1, 2, ' + number + b"]]]}", model="leading")
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "body"


@pytest.mark.parametrize("positions", ["all", "last", [0]], ids=str)
@pytest.mark.parametrize("route", ["predict", "attention"])
def test_there_are_no_positions_to_ask_for(broad, route, positions):
    for name in NAMES:
        response = broad.post(route, {"sequences": draw(2), "positions": positions}, model=name)
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "positions"


def test_top_k_is_at_most_the_classes(broad):
    for name, num_classes in (("leading", 3), ("halves", 4)):
        whole = broad.ask("predict", {"sequences": draw(5), "top_k": num_classes}, model=name)
        some = broad.ask("predict", {"sequences": draw(5), "top_k": 1}, model=name)
        assert some["predictions"][0]["top"][0] == whole["predictions"][0]["top"][0][:1]
        response = broad.post("predict", {"sequences": draw(5), "top_k": num_classes + 1}, model=name)
        assert "(the classes)" in response.json()["detail"]


def test_models_say_what_they_read(broad):
    described = {name: broad.client.get(f"/v1/models/{name}").json() for name in (*NAMES, "text", "tagger")}
    assert {name: one["num_features"] for name, one in described.items()} == {
        "leading": NUM_FEATURES,
        "halves": NUM_FEATURES,
        "text": None,
        "tagger": None,
    }
    assert [described[name]["reads_text"] for name in ("leading", "halves", "text", "tagger")] == [0, 0, 1, 1]
    assert described["leading"]["labels"] == list(CLASSES)
    assert described["leading"]["limits"]["max_length"] == MAX_LENGTH
    assert described["halves"]["certificate"]["precision"] == "float16"


def test_models_say_what_int8_weights_cost(broad):
    described = {name: broad.client.get(f"/v1/models/{name}").json() for name in ("text", "tagger")}
    assert described["tagger"]["certificate"]["precision"] == "int8"
    found = described["tagger"]["quantisation"]
    assert 0 < found["mean_difference"] < found["largest_difference"] < 0.1
    assert 0.9 < found["top1_agreement"] <= 1
    assert found["num_answers"] > 100
    assert described["text"]["quantisation"] is None
