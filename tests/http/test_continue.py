"""`POST .../predict` with `continue`: one answer or server-sent events, from a running service."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from tests.kinds import MAX_LENGTH, make_tokenizer

pytestmark = pytest.mark.http

EVENTS = "text/event-stream"
UNKNOWN = "\ufffd"


def parse_events(text: str) -> list[tuple[str, str]]:
    """By the rules of https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation."""
    events, name, data = [], "message", []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((name, "\n".join(data)))
            name, data = "message", []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
        else:
            assert field in ("", "id", "retry")
    assert not data, "an event that no empty line ends is never heard"
    return events


def listen(served, body, *, model="text", accept=EVENTS) -> list[tuple[str, dict]]:
    response = served.post("predict", body, model=model, headers={"Accept": accept})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    return [(name, json.loads(data)) for name, data in parse_events(response.text)]


def ids_of(answer) -> list[list[int]]:
    return [[token["id"] for token in one["tokens"]] for one in answer["continuations"]]


def test_the_smallest_question(broad):
    answer = broad.ask("predict", {"sequences": [[3]], "continue": 1}, model="text")
    assert set(answer) == {"model", "version", "continuations", "seed", "warnings"}
    (one,) = answer["continuations"]
    assert set(one) == {"steps", "tokens", "text"}
    assert one["steps"] == [1]
    assert [set(token) for token in one["tokens"]] == [{"id", "label", "probability", "logit"}]


@pytest.mark.parametrize(("model", "sequence"), [("text", "the cat"), ("text", [5, 6]), ("tiny", ["a", "b"])])
def test_it_is_what_predict_says_step_by_step(request, model, sequence):
    served = request.getfixturevalue("server" if model == "tiny" else "broad")
    answer = served.ask("predict", {"sequences": [sequence], "continue": 12}, model=model)
    grown = make_tokenizer().encode(sequence).ids if isinstance(sequence, str) else sequence
    grown = [ord(label) - ord("a") for label in grown] if model == "tiny" else list(grown)
    (one,) = answer["continuations"]
    assert one["steps"] == list(range(len(grown), len(grown) + 12))
    for token in one["tokens"]:
        (entry,) = served.ask("predict", {"sequences": [grown], "top_k": 1}, model=model)["predictions"][0]["top"][0]
        assert (token["id"], token["label"]) == (entry["id"], entry["label"])
        assert token["logit"] == pytest.approx(entry["logit"], abs=1e-5)
        assert token["probability"] == pytest.approx(entry["probability"], abs=1e-5)
        grown.append(token["id"])
    assert (one["text"] is None) == (model == "tiny")


def test_events_are_the_answer_in_pieces(broad):
    body = {"sequences": ["the cat", [7, 8, 9]], "continue": 20, "temperature": 1.0, "seed": 5}
    whole = broad.ask("predict", body, model="text")
    *pieces, (name, last) = listen(broad, body)
    assert name == "done"
    assert last == whole
    assert whole["seed"] == 5
    assert len(whole["tokens"]) == 2
    assert [(name, piece["sequence"]) for name, piece in pieces] == [("token", 0), ("token", 1)] * 20
    for index, one in enumerate(whole["continuations"]):
        mine = [piece for _, piece in pieces if piece["sequence"] == index]
        assert [piece["step"] for piece in mine] == one["steps"]
        assert [{name: piece[name] for name in one["tokens"][0]} for piece in mine] == one["tokens"]
        heard = "".join(piece["text"] for piece in mine)
        assert heard == one["text"].rstrip(UNKNOWN)


def test_batch_mates_order_and_other_clients_do_not_matter(broad):
    sequences = ["the cat", "at", [9] * 40, "the cat\N{GRINNING FACE}", "x"]
    body = {"continue": 10, "temperature": 0.8, "top_k": 40, "seed": 11}
    alone = [ids_of(broad.ask("predict", {**body, "sequences": [one]}, model="text"))[0] for one in sequences]
    with ThreadPoolExecutor(8) as pool:
        orders = [sequences, sequences[::-1], sequences[2:], [sequences[3]]] * 3
        answers = pool.map(lambda order: broad.ask("predict", {**body, "sequences": order}, model="text"), orders)
        for order, answer in zip(orders, answers, strict=True):
            expected = [alone[next(place for place, one in enumerate(sequences) if one is item)] for item in order]
            assert ids_of(answer) == expected


def test_seeds(broad):
    body = {"sequences": ["the"], "continue": 10, "temperature": 3}
    seeded = [ids_of(broad.ask("predict", {**body, "seed": seed}, model="text")) for seed in (0, 0, 1, 2**53 - 1)]
    assert seeded[0] == seeded[1]
    assert seeded[0] != seeded[2] != seeded[3]
    # One that was not given is told, so that the answer can be had again.
    answer = broad.ask("predict", body, model="text")
    again = broad.ask("predict", {**body, "seed": answer["seed"]}, model="text")
    assert answer == again
    assert broad.ask("predict", {**body, "temperature": 0}, model="text")["seed"] is None


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": -0.0}, {"temperature": 9, "top_k": 1}], ids=str)
def test_greedy_in_other_words(broad, fields):
    body = {"sequences": ["the cat"], "continue": 8}
    assert ids_of(broad.ask("predict", {**body, **fields}, model="text")) == ids_of(
        broad.ask("predict", body, model="text")
    )


@pytest.mark.parametrize("temperature", ["1e-300", "5e-324", "1E300", "1.7976931348623157e308"])
def test_extreme_temperatures(broad, temperature):
    body = f'{{"sequences": [[1]], "continue": 5, "seed": 1, "temperature": {temperature}}}'
    answer = broad.ask("predict", body.encode(), model="text")
    greedy = broad.ask("predict", {"sequences": [[1]], "continue": 5}, model="text")
    assert (ids_of(answer) == ids_of(greedy)) == (float(temperature) < 1)


def test_it_goes_on_to_the_very_end_and_not_beyond(broad):
    body = {"sequences": [[1] * (MAX_LENGTH - 3), [1]]}
    answer = broad.ask("predict", {**body, "continue": 3}, model="text")
    assert answer["continuations"][0]["steps"] == [MAX_LENGTH - 3, MAX_LENGTH - 2, MAX_LENGTH - 1]
    response = broad.post("predict", {**body, "continue": 4}, model="text")
    assert response.status_code == 422
    assert "sequences[0] has 93 of at most 96 steps: expected at most 3 more, got the number 4" in response.text


def test_the_version_can_be_named(broad):
    body = {"sequences": ["the"], "continue": 4}
    assert broad.ask("versions/1/predict", body, model="text") == broad.ask("predict", body, model="text")


REFUSED = {
    "0": ({"continue": 0}, "continue"),
    "true": ({"continue": True}, "continue"),
    "1.0": ({"continue": 1.0}, "continue"),
    "1e3": ({"continue": 1e3}, "continue"),
    "a string": ({"continue": "9"}, "continue"),
    "2**63": ({"continue": 2**63}, "continue"),
    "too many": ({"continue": MAX_LENGTH}, "continue"),
    "seed 1.0": ({"seed": 1.0}, "seed"),
    "seed true": ({"seed": True}, "seed"),
    "seed 2**53": ({"seed": 2**53}, "seed"),
    "temperature true": ({"temperature": True}, "temperature"),
    "temperature negative": ({"temperature": -1}, "temperature"),
    "top_k 0": ({"top_k": 0}, "top_k"),
    "top_k 264": ({"top_k": 264}, "top_k"),
    "positions": ({"positions": "all"}, "positions"),
    "attention": ({"attention": {}}, "attention"),
    "temperature alone": ({"continue": None, "temperature": 1}, "temperature"),
    "seed alone": ({"continue": None, "seed": 1}, "seed"),
    "a field more": ({"max_tokens": 3}, "max_tokens"),
}


@pytest.mark.parametrize(("fields", "field"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("accept", ["*/*", EVENTS])
def test_what_is_refused_is_named_whatever_is_accepted(broad, fields, field, accept):
    body = {"sequences": ["the cat"], "continue": 3, **fields}
    response = broad.post("predict", body, model="text", headers={"Accept": accept})
    assert response.status_code == 422, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert [fault["field"] for fault in response.json()["errors"]] == [field]


@pytest.mark.parametrize("name", ["leading", "halves", "tagger"])
def test_classifiers_do_not_go_on(broad, name):
    response = broad.post("predict", {"sequences": ["the"], "continue": 3}, model=name)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "continue"


def test_null_is_no_continuation(broad):
    body = {"sequences": ["the cat"]}
    unset = {"continue": None, "temperature": None, "seed": None, "top_k": None, "positions": None, "attention": None}
    assert broad.ask("predict", {**body, **unset}, model="text") == broad.ask("predict", body, model="text")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json;q=0.1, application/*", "application/json"),
        (f"application/json;q=0.5, {EVENTS}", EVENTS),
        ("text/*", EVENTS),
        (f"{EVENTS}; charset=utf-8", EVENTS),
        (f"TEXT/Event-Stream;Q=0.001, {EVENTS};q=", EVENTS),
        (f"{EVENTS};q=0, */*;q=0.1", "application/json"),
        ("application/x-safetensors", None),
        ("text/html", None),
        (f"{EVENTS};q=0", None),
        (f"{EVENTS};q=nan", None),
        (";;,", None),
        ("text", None),
    ],
)
def test_the_format_is_negotiated(broad, accept, expected):
    body = {"sequences": ["the"], "continue": 2}
    response = broad.post("predict", body, model="text", headers={"Accept": accept})
    if expected is None:
        assert response.status_code == 406
        assert response.json()["errors"][0]["field"] == "Accept"
        assert f"expected one of application/json, {EVENTS}, got" in response.json()["detail"]
    else:
        assert response.status_code == 200
        assert response.headers["Content-Type"].partition(";")[0] == expected


def test_what_does_not_go_on_is_no_stream(broad):
    for body in (
        {"sequences": ["the"]},
        {"sequences": ["the"], "attention": {}},
        {"sequences": ["x"], "continue": None},
    ):
        response = broad.post("predict", body, model="text", headers={"Accept": EVENTS})
        assert response.status_code == 406
    assert broad.post("attention", {"sequences": ["x"], "continue": 1}, model="text").status_code == 422


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_only_posts_go_on(broad, method):
    response = broad.client.request(method, "/v1/models/text/predict", headers={"Accept": EVENTS})
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize("accept", ["*/*", EVENTS])
def test_clients_who_leave_are_in_nobody_s_way(broad, accept):
    place = urlsplit(broad.url)
    body = json.dumps({"sequences": [[1]] * 600, "continue": MAX_LENGTH - 1}).encode()
    head = f"POST /v1/models/text/predict HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Length: {len(body)}"
    # More than the queue of 4096 holds, if those who left stayed in it.
    for _ in range(8):
        with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            if accept == EVENTS:
                assert b"200 OK" in connection.recv(64)
        broad.ask("predict", {"sequences": ["the"], "continue": 1}, model="text")


def test_a_slow_listener_hears_everything(broad):
    body = {"sequences": [[1]] * 100, "continue": 60}
    with broad.client.stream("POST", "/v1/models/text/predict", json=body, headers={"Accept": EVENTS}) as response:
        parts = response.iter_bytes(1000)
        text = next(parts).decode()
        # Meanwhile others are answered.
        assert broad.client.get("/healthz").status_code == 200
        broad.ask("predict", {"sequences": ["the"]}, model="text")
        text += b"".join(parts).decode()
    events = parse_events(text)
    assert [name for name, _ in events] == ["token"] * 6000 + ["done"]
