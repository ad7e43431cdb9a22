"""`POST /v1/models/{model}/predict` against a running service."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.http

LABELS = "abcdefghijklmnopqrst"
MAX_ENTRIES = 65_536


@pytest.fixture(scope="module")
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def draw(random: np.random.Generator, *lengths: int) -> list[list[int]]:
    return [random.integers(0, len(LABELS), length).tolist() for length in lengths]


def logits_of(prediction: dict, position: int) -> np.ndarray:
    """Logits by id, of a prediction that lists the whole vocabulary."""
    by_id = {entry["id"]: entry["logit"] for entry in prediction["top"][position]}
    return np.array([by_id[index] for index in range(len(LABELS))], np.float32)


def test_the_smallest_question(server):
    answer = server.ask("predict", {"sequences": [[3]]})
    assert (answer["model"], answer["version"], answer["warnings"]) == ("tiny", 1, [])
    (prediction,) = answer["predictions"]
    assert prediction["positions"] == [0]
    assert [set(entry) for entry in prediction["top"][0]] == [{"id", "label", "probability", "logit"}] * 5
    assert set(answer) == {"model", "version", "predictions", "warnings"}


def test_answers_are_those_of_torch_in_float64(server, checkpoint, random):
    from attnserve.export.golden import answer
    from attnserve.models.checkpoint import load_checkpoint

    sequences = draw(random, 1, 2, 7, 64, 320)
    model = load_checkpoint(checkpoint).model.double()
    given = server.ask("predict", {"sequences": sequences, "positions": "all", "top_k": len(LABELS)})
    for sequence, prediction in zip(sequences, given["predictions"], strict=True):
        truth = answer(model, model.config.interface, [np.array(sequence)]).logits[0].numpy()
        assert prediction["positions"] == list(range(len(sequence)))
        logits = np.stack([logits_of(prediction, position) for position in range(len(sequence))])
        np.testing.assert_allclose(logits, truth, atol=5e-5 * np.abs(truth).max(), rtol=0)


def test_a_sequence_alone_is_answered_as_in_a_batch(server, random):
    sequences = draw(random, 5, 300, 1, 17, 17, 120)
    together = server.ask("predict", {"sequences": sequences, "positions": "all", "top_k": len(LABELS)})
    for index, sequence in enumerate(sequences):
        alone = server.ask("predict", {"sequences": [sequence], "positions": "all", "top_k": len(LABELS)})
        for position in range(len(sequence)):
            np.testing.assert_allclose(
                logits_of(together["predictions"][index], position),
                logits_of(alone["predictions"][0], position),
                atol=1e-5,
                rtol=0,
            )


def test_order_is_kept(server, random):
    sequences = draw(random, *random.integers(1, 60, 40).tolist())
    forwards = server.ask("predict", {"sequences": sequences, "top_k": len(LABELS)})["predictions"]
    backwards = server.ask("predict", {"sequences": sequences[::-1], "top_k": len(LABELS)})["predictions"]
    for sequence, first, second in zip(sequences, forwards, backwards[::-1], strict=True):
        assert first["positions"] == second["positions"] == [len(sequence) - 1]
        np.testing.assert_allclose(logits_of(first, 0), logits_of(second, 0), atol=1e-5, rtol=0)


def test_labels_are_ids_by_another_name(server, random):
    (ids,) = draw(random, 30)
    labels = [LABELS[index] for index in ids]
    by_id, by_label = (server.ask("predict", {"sequences": [items]}) for items in (ids, labels))
    assert by_id == by_label
    # A sequence is either; a request may hold both.
    mixed = server.ask("predict", {"sequences": [ids, labels]})["predictions"]
    assert mixed[0] == mixed[1]
    for entry in mixed[0]["top"][0]:
        assert entry["label"] == LABELS[entry["id"]]


@pytest.mark.parametrize("top_k", [1, 2, 19, 20])
def test_top_k_is_the_head_of_the_whole_list(server, top_k):
    sequence = [4, 8, 15, 16, 2, 3]
    whole = server.ask("predict", {"sequences": [sequence], "top_k": 20})["predictions"][0]["top"][0]
    some = server.ask("predict", {"sequences": [sequence], "top_k": top_k})["predictions"][0]["top"][0]
    assert some == whole[:top_k]
    logits = [entry["logit"] for entry in whole]
    assert logits == sorted(logits, reverse=True)
    assert sorted(entry["id"] for entry in whole) == list(range(20))


def test_probabilities_are_the_softmax_of_the_logits(server, random):
    answer = server.ask("predict", {"sequences": draw(random, 50), "positions": "all", "top_k": 20})
    for entries in answer["predictions"][0]["top"]:
        logits = np.array([entry["logit"] for entry in entries])
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose([entry["probability"] for entry in entries], expected, rtol=1e-6)
        assert sum(entry["probability"] for entry in entries) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("last", [5]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ([0], [0]),
        ([-1], [5]),
        ([-6, 5, 2, -4], [0, 5, 2, 2]),
    ],
)
def test_positions_are_absolute_and_in_the_order_asked_for(server, positions, expected):
    sequence = [4, 8, 15, 16, 2, 3]
    everything = server.ask("predict", {"sequences": [sequence], "positions": "all"})["predictions"][0]
    answer = server.ask("predict", {"sequences": [sequence], "positions": positions})["predictions"][0]
    assert answer["positions"] == expected
    for entries, position in zip(answer["top"], expected, strict=True):
        assert [entry["id"] for entry in entries] == [entry["id"] for entry in everything["top"][position]]


def test_positions_count_from_the_end_of_each_sequence(server):
    answer = server.ask("predict", {"sequences": [[1, 2, 3], [4, 5]], "positions": [0, -1]})
    assert [prediction["positions"] for prediction in answer["predictions"]] == [[0, 2], [0, 1]]


def test_numbers_are_float32_in_their_shortest_exact_form(server, random):
    response = server.post("predict", {"sequences": draw(random, 100), "positions": "all", "top_k": 20})
    # Decimals as they stand in the text, before Python's float64 makes something of them.
    document = json.loads(response.text, parse_float=str)
    numbers = [
        entry[name]
        for entries in document["predictions"][0]["top"]
        for entry in entries
        for name in ("logit", "probability")
    ]
    assert len(numbers) == 4000
    for text in numbers:
        exact = np.float32(text)
        assert float(text) == float(np.format_float_positional(exact, unique=True))
        # Nine significant digits tell any two float32 apart, so a shortest form has no more.
        assert len(text.lstrip("-0.").partition("e")[0].replace(".", "")) <= 9


def test_the_cap_is_exact(server):
    sequences = [[1] * 256] * 256
    answer = server.ask("predict", {"sequences": sequences, "positions": "all", "top_k": 1})
    assert sum(len(prediction["top"]) for prediction in answer["predictions"]) == MAX_ENTRIES

    refused = server.post("predict", {"sequences": [*sequences, [1]], "positions": "all", "top_k": 1})
    assert refused.status_code == 413
    assert refused.json()["errors"][0]["field"] == "top_k"
    assert "65537" in refused.json()["detail"]

    half = {"sequences": [[1] * 256] * 128, "positions": "all"}
    assert server.post("predict", {**half, "top_k": 2}).status_code == 200
    assert server.post("predict", {**half, "top_k": 3}).status_code == 413


def test_too_much_is_refused_before_any_work(server):
    # A short body that names a lot: 4,000 sequences by 65,000 positions by 20 entries.
    body = {"sequences": [[1, 2]] * 4000, "positions": [0] * 65_000, "top_k": 20}
    response = server.post("predict", body)
    assert response.status_code == 413
    assert str(4000 * 65_000 * 20) in response.json()["detail"]


def test_a_version_can_be_named(server):
    body = {"sequences": [[1, 2, 3]]}
    assert server.ask("versions/1/predict", body) == server.ask("predict", body)


def test_spelling_of_the_request_does_not_matter(server):
    expected = server.ask("predict", {"sequences": [[1, 2, 3]]})
    for headers in (
        {},
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "application/vnd.api+json"},
        {"Accept": "application/json"},
        {"Accept": "*/*"},
        {"Accept": "text/html, application/*;q=0.1"},
    ):
        response = server.client.post(
            "/v1/models/tiny/predict", content=b' \n{"sequences":\t[[1,2,3]]}\r\n', headers=headers
        )
        assert response.status_code == 200, (headers, response.text)
        assert response.json() == expected
        assert response.headers["Content-Type"] == "application/json"


def test_the_future_changes_no_logit(server, random):
    (sequence,) = draw(random, 80)
    other = [*sequence[:40], *draw(random, 40)[0]]
    first, second = (
        server.ask("predict", {"sequences": [items], "positions": list(range(40)), "top_k": 20})
        for items in (sequence, other)
    )
    assert sequence != other
    assert first == second
