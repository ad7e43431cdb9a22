"""Everything a client can get wrong: always problem+json that names the field, never 500."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnserve.service.diagnostics import DIAGNOSTICS
from attnserve.service.question import QUANTITIES

pytestmark = pytest.mark.http

PROBLEM = {"type", "title", "status", "detail", "error", "errors"}
MAX_PROBLEM_BYTES = 10_000


def check_problem(response: httpx.Response, status: int | None = None) -> dict:
    """The one shape of every error; returns it."""
    assert status is None or response.status_code == status, response.text
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert len(response.content) < MAX_PROBLEM_BYTES
    problem = response.json()
    assert set(problem) == PROBLEM
    assert problem["status"] == response.status_code
    assert problem["detail"] == problem["error"]
    assert isinstance(problem["title"], str)
    assert len(problem["errors"]) <= 20
    for fault in problem["errors"]:
        assert set(fault) == {"field", "message"}
    return problem


def fields_of(problem: dict) -> list[str]:
    return [fault["field"] for fault in problem["errors"]]


BODIES = {
    "missing": ({}, "sequences"),
    "empty sequences": ({"sequences": []}, "sequences"),
    "empty sequence": ({"sequences": [[1], []]}, "sequences[1]"),
    "sequences null": ({"sequences": None}, "sequences"),
    "sequences a string": ({"sequences": "abc"}, "sequences"),
    "sequences an object": ({"sequences": {"0": [1]}}, "sequences"),
    "sequence null": ({"sequences": [None]}, "sequences[0]"),
    "sequence a string": ({"sequences": ["abc"]}, "sequences[0]"),
    "sequence a number": ({"sequences": [1]}, "sequences[0]"),
    "nested too deep": ({"sequences": [[[1]]]}, "sequences[0][0]"),
    "id an object": ({"sequences": [[1, {}]]}, "sequences[0][1]"),
    "id null": ({"sequences": [[1, None]]}, "sequences[0][1]"),
    "id true": ({"sequences": [[1], [1, True]]}, "sequences[1][1]"),
    "id false": ({"sequences": [[False]]}, "sequences[0][0]"),
    "id 1.0": ({"sequences": [[1.0]]}, "sequences[0][0]"),
    'id "1"': ({"sequences": [["1"]]}, "sequences[0][0]"),
    "id negative": ({"sequences": [[0, -1]]}, "sequences[0][1]"),
    "id out of range": ({"sequences": [[19, 20]]}, "sequences[0][1]"),
    "id 2**31": ({"sequences": [[2**31]]}, "sequences[0][0]"),
    "id 2**63": ({"sequences": [[2**63]]}, "sequences[0][0]"),
    "id -2**63": ({"sequences": [[-(2**63)]]}, "sequences[0][0]"),
    "id 2**64": ({"sequences": [[2**64]]}, "sequences[0][0]"),
    "unknown label": ({"sequences": [["a", "z"]]}, "sequences[0][1]"),
    "ids and labels": ({"sequences": [[1, "b"]]}, "sequences[0][1]"),
    "too long": ({"sequences": [[1] * 320, [1] * 321]}, "sequences[1]"),
    "top_k 0": ({"sequences": [[1]], "top_k": 0}, "top_k"),
    "top_k negative": ({"sequences": [[1]], "top_k": -1}, "top_k"),
    "top_k beyond the vocabulary": ({"sequences": [[1]], "top_k": 21}, "top_k"),
    "top_k 2**63": ({"sequences": [[1]], "top_k": 2**63}, "top_k"),
    "top_k 2**64": ({"sequences": [[1]], "top_k": 2**64}, "top_k"),
    "top_k true": ({"sequences": [[1]], "top_k": True}, "top_k"),
    "top_k 1.0": ({"sequences": [[1]], "top_k": 1.0}, "top_k"),
    "top_k a string": ({"sequences": [[1]], "top_k": "3"}, "top_k"),
    "positions unknown": ({"sequences": [[1]], "positions": "first"}, "positions"),
    "positions a number": ({"sequences": [[1]], "positions": 0}, "positions"),
    "positions empty": ({"sequences": [[1]], "positions": []}, "positions"),
    "positions beyond the end": ({"sequences": [[1, 2]], "positions": [0, 2]}, "positions[1]"),
    "positions before the start": ({"sequences": [[1, 2]], "positions": [-3]}, "positions[0]"),
    "positions beyond the shorter": ({"sequences": [[1, 2, 3], [1]], "positions": [0, 2]}, "positions[1]"),
    "positions 2**63": ({"sequences": [[1]], "positions": [2**63]}, "positions[0]"),
    "positions true": ({"sequences": [[1, 2]], "positions": [True]}, "positions[0]"),
    "positions 0.0": ({"sequences": [[1]], "positions": [0.0]}, "positions[0]"),
    "positions nested": ({"sequences": [[1]], "positions": [[0]]}, "positions[0]"),
    "unknown field": ({"sequences": [[1]], "topk": 3}, "topk"),
    "fields of attention": ({"sequences": [[1]], "layers": [0]}, "layers"),
    "attention a list": ({"sequences": [[1]], "attention": []}, "attention"),
    "attention true": ({"sequences": [[1]], "attention": True}, "attention"),
    "unknown field of attention": ({"sequences": [[1]], "attention": {"layer": 0}}, "attention.layer"),
    "sequences inside attention": ({"sequences": [[1]], "attention": {"sequences": []}}, "attention.sequences"),
}


@pytest.mark.parametrize(("body", "field"), BODIES.values(), ids=BODIES)
def test_predict_names_the_field(server, body, field):
    problem = check_problem(server.post("predict", orjson.dumps(body) if not has_wide_int(body) else to_bytes(body)))
    assert problem["status"] == 422
    assert fields_of(problem) == [field]
    assert problem["detail"].startswith(f"{field}: ")


def has_wide_int(body: dict) -> bool:
    return "18446744073709551616" in str(body)


def to_bytes(body: dict) -> bytes:
    """With the standard library: orjson writes no integer beyond 64 bits."""
    return json.dumps(body).encode()


SELECTIONS = {
    "layers null": ({"layers": None}, "layers"),
    "layers empty": ({"layers": []}, "layers"),
    "layers last": ({"layers": "last"}, "layers"),
    "layers a number": ({"layers": 0}, "layers"),
    "layers out of range": ({"layers": [0, 3]}, "layers[1]"),
    "layers before the first": ({"layers": [-4]}, "layers[0]"),
    "layers true": ({"layers": [True]}, "layers[0]"),
    "layers nested": ({"layers": [[0]]}, "layers[0]"),
    "heads out of range": ({"heads": [2]}, "heads[0]"),
    "heads 1.0": ({"heads": [1.0]}, "heads[0]"),
    "heads a string": ({"heads": ["0"]}, "heads[0]"),
    "heads empty": ({"heads": []}, "heads"),
    "heads an object": ({"heads": {}}, "heads"),
    "queries out of range": ({"queries": [3]}, "queries[0]"),
    "queries out of range for one": ({"queries": [0, 1]}, "queries[1]"),
    "queries null": ({"queries": None}, "queries"),
    "queries empty": ({"queries": []}, "queries"),
    "queries unknown": ({"queries": "first"}, "queries"),
    "queries 2**63": ({"queries": [2**63]}, "queries[0]"),
    "quantity unknown": ({"quantity": "maps"}, "quantity"),
    "slice empty": ({"layers": "3:"}, "layers"),
    "slice empty for one": ({"queries": "1:2"}, "queries"),
    "slice by 0": ({"heads": "::0"}, "heads"),
    "token nowhere": ({"queries": {"token": "t"}}, "queries.token"),
    "token of one only": ({"queries": {"token": 4}}, "queries.token"),
    "token 2**63": ({"queries": {"token": 2**63}}, "queries.token"),
    "span of ids": ({"queries": {"span": [0, 1]}}, "queries.span"),
    "pairs with layers": ({"pairs": [[0, 0]], "layers": [0]}, "layers"),
    "pairs out of range": ({"pairs": [[0, 0], [0, 2]]}, "pairs[1]"),
    "keys of measures": ({"keys": [0]}, "keys"),
    "reduce unknown": ({"quantity": "weights", "reduce": {"rows": "mean"}}, "reduce.rows"),
    "words of ids": ({"quantity": "weights", "reduce": {"tokens": "word"}}, "reduce.tokens"),
    "top_keys 0": ({"quantity": "weights", "top_keys": 0}, "top_keys"),
    "min_weight a string": ({"quantity": "weights", "min_weight": "0"}, "min_weight"),
    "compare with nothing": ({"compare": {}}, "compare"),
    "compare with no model": ({"compare": {"model": "nope"}}, "compare.model"),
    "compare with another length": ({"compare": {"sequences": [[1, 2, 3], [4, 4]]}}, "compare.sequences[1]"),
    "compare with a wrong id": ({"compare": {"sequences": [[1, 2, 99], [4]]}}, "compare.sequences[0][2]"),
    "ablate out of range": ({"ablate": [[3, 0]]}, "ablate[0]"),
    "square roots of negatives": ({"quantity": "scores", "dtype": "uint8_sqrt"}, "dtype"),
    "dry_run 1": ({"dry_run": 1}, "dry_run"),
    "quantity null": ({"quantity": None}, "quantity"),
    "quantity a list": ({"quantity": ["weights"]}, "quantity"),
    "diagnostics unknown": ({"diagnostics": ["entropy", "entropy_bits"]}, "diagnostics[1]"),
    "diagnostics empty": ({"diagnostics": []}, "diagnostics"),
    "diagnostics a string": ({"diagnostics": "entropy"}, "diagnostics"),
    "diagnostics null": ({"diagnostics": None}, "diagnostics"),
    "diagnostics of numbers": ({"diagnostics": [1]}, "diagnostics[0]"),
    "diagnostics of lists": ({"diagnostics": [[]]}, "diagnostics[0]"),
    "dtype unknown": ({"dtype": "float64"}, "dtype"),
    "dtype null": ({"dtype": None}, "dtype"),
}


@pytest.mark.parametrize(("selection", "field"), SELECTIONS.values(), ids=SELECTIONS)
def test_attention_names_the_field(server, selection, field):
    sequences = {"sequences": [[1, 2, 3], [4]]}
    problem = check_problem(server.post("attention", {**sequences, **selection}), 422)
    assert fields_of(problem) == [field]
    inside = check_problem(server.post("predict", {**sequences, "attention": selection}), 422)
    assert fields_of(inside) == [f"attention.{field}"]


RAW = {
    "empty": b"",
    "blank": b" \n",
    "not JSON": b"sequences=[[1]]",
    "NaN": b'{"sequences": [[NaN]]}',
    "Infinity": b'{"sequences": [[1]], "top_k": -Infinity}',
    "1e400": b'{"sequences": [[1e400]]}',
    "10**400": b'{"sequences": [[1' + b"0" * 400 + b"]]}",
    "lone surrogate": rb'{"sequences": [["\ud800"]]}',
    "lone surrogate in a name": rb'{"sequences": [[1]], "\udfff": 1}',
    "invalid UTF-8": b'{"sequences": [["\xff"]]}',
    "UTF-16": '{"sequences": [[1]]}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"sequences": [[1]]}',
    "truncated": b'{"sequences": [[1, 2',
    "trailing comma": b'{"sequences": [[1,]]}',
    "two documents": b'{"sequences": [[1]]}{"sequences": [[1]]}',
    "comment": b'{"sequences": [[1]]} // hello',
    "control character": b'{"sequences": [["a\x00"]]}',
    "deep lists": b"[" * 100_000,
    "deep lists, closed": b'{"sequences": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a list": b"[[1]]",
    "a string": b'"sequences"',
    "a number": b"1",
    "null": b"null",
    "true": b"true",
    "leading zero": b'{"sequences": [[01]]}',
    "hexadecimal": b'{"sequences": [[0x1]]}',
}


@pytest.mark.parametrize("route", ["predict", "attention"])
@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_what_is_no_json_object_is_refused(server, body, route):
    problem = check_problem(server.post(route, body), 400)
    assert fields_of(problem) == ["body"]


def test_of_duplicate_names_the_last_counts(server):
    # As JSON parsers do; documented in docs/api.md.
    response = server.post("predict", b'{"sequences": [[99]], "sequences": [[1, 2]]}')
    assert response.status_code == 200
    assert response.json()["predictions"][0]["positions"] == [1]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/models/nobody", "model"),
        ("/v1/models/TINY", "model"),
        ("/v1/models/tiny%20", "model"),
        ("/v1/models/%74iny%00", "model"),
        ("/v1/models/..", "model"),
        ("/v1/models/%2e%2e", "model"),
        ("/v1/models/..%2f..%2fetc%2fpasswd", "path"),
        ("/v1/models/..%5c..%5cetc", "model"),
        ("/v1/models/%ff%fe", "model"),
        ("/v1/models/%ED%A0%80", "model"),
        ("/v1/models/" + "x" * 10_000, "model"),
        ("/v1/models/" + "%F0%9F%A6%80" * 1000, "model"),
        ("/v1/models/tiny/versions/2", "version"),
        ("/v1/models/tiny/versions/0", "version"),
        ("/v1/models/tiny/versions/01", "version"),
        ("/v1/models/tiny/versions/-1", "version"),
        ("/v1/models/tiny/versions/1.0", "version"),
        ("/v1/models/tiny/versions/%C2%B2", "version"),
        ("/v1/models/tiny/versions/%D9%A1", "version"),
        ("/v1/models/tiny/versions/" + "9" * 5000, "version"),
    ],
)
def test_unknown_models_and_versions(server, path, field):
    # Raw, because httpx would tidy the path up.
    problem = check_problem(send(server, b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"), 404)
    assert fields_of(problem) == [field]
    if field != "path":
        posted = b"POST " + path.encode() + b"/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
        assert fields_of(check_problem(send(server, posted), 404)) == [field]


def test_an_unknown_model_is_told_which_there_are(server):
    problem = check_problem(server.post("predict", {"sequences": [[1]]}, model="nobody"), 404)
    assert "expected one of tiny, got 'nobody'" in problem["detail"]


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/models/", "/healthz/", "/v1/models/tiny/predict/", "//healthz"])
def test_unknown_routes(server, path):
    for method in ("GET", "POST"):
        # The whole address: of "//healthz" alone httpx takes the first part for a host.
        problem = check_problem(server.client.request(method, server.url + path), 404)
        assert fields_of(problem) == ["path"]


@pytest.mark.parametrize("host", [b"[", b"x:y:z", b"", b"\xff", b"a/b", b"x" * 5000])
def test_a_host_that_is_none(server, host):
    for path, status in ((b"/healthz", 200), (b"/nope", 404), (b"/v1/models/nobody", 404), (b"/v1/models/", 404)):
        assert send(server, b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").status_code == status


def test_http_1_0_without_a_host(server):
    assert send(server, b"GET /healthz HTTP/1.0\r\n\r\n").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/models/tiny/predict", "POST"),
        ("PUT", "/v1/models/tiny/attention", "POST"),
        ("DELETE", "/v1/models/tiny", "GET"),
        ("POST", "/healthz", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
        ("BREW", "/v1/models", None),
    ],
)
def test_wrong_methods(server, method, path, allowed):
    response = server.client.request(method, path)
    if allowed is None:  # uvicorn itself refuses words it does not know
        assert 400 <= response.status_code < 500
        return
    assert fields_of(check_problem(response, 405)) == ["method"]
    assert allowed in response.headers["Allow"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/v1/models/tiny", "/v1/models/tiny/versions/1"])
def test_head_is_get_without_the_body(server, path):
    response = server.client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json", ";", "\xe9"]
)
def test_wrong_content_type(server, content_type):
    headers = {"Content-Type": content_type.encode("latin-1")}
    response = server.client.post("/v1/models/tiny/predict", content=b'{"sequences": [[1]]}', headers=headers)
    problem = check_problem(response, 415)
    assert fields_of(problem) == ["Content-Type"]
    assert ("--json" in problem["detail"]) == (content_type == "application/x-www-form-urlencoded")


def test_missing_content_type_is_accepted(server):
    request = server.client.build_request("POST", "/v1/models/tiny/predict", content=b'{"sequences": [[1]]}')
    assert "Content-Type" not in request.headers
    assert server.client.send(request).status_code == 200


def test_compressed_bodies_are_refused_by_name(server):
    response = server.post("predict", b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert fields_of(check_problem(response, 415)) == ["Content-Encoding"]


@pytest.mark.parametrize("accept", ["text/html", "application/xml, text/*", "application/json;q=0", "nonsense", ";;,"])
def test_no_format_left(server, accept):
    for route in ("predict", "attention"):
        problem = check_problem(server.post(route, {"sequences": [[1]]}, headers={"Accept": accept}), 406)
        assert fields_of(problem) == ["Accept"]


def test_predictions_alone_are_no_tensors(server):
    headers = {"Accept": "application/x-safetensors"}
    problem = check_problem(server.post("predict", {"sequences": [[1]]}, headers=headers), 406)
    assert problem["detail"].startswith("Accept: expected one of application/json, got")


def test_a_body_over_the_limit_is_refused_by_its_content_length(server):
    response = server.post("predict", b" " * (16 * 1024 * 1024) + b"1")
    assert fields_of(check_problem(response, 413)) == ["body"]


def test_a_body_over_the_limit_is_refused_while_it_is_read(server):
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(64):
            sent += 1024 * 1024
            yield b" " * 1024 * 1024

    # Without a Content-Length, so httpx sends it in chunks.
    response = server.client.post("/v1/models/tiny/predict", content=chunks())
    assert fields_of(check_problem(response, 413)) == ["body"]
    assert server.client.get("/healthz").status_code == 200


def test_at_most_twenty_faults_are_named(server):
    body = {"sequences": [[f"wrong label number {number} " + "x" * 1000 for number in range(300)]] * 50}
    problem = check_problem(server.post("predict", body), 422)
    assert fields_of(problem) == [f"sequences[0][{place}]" for place in range(20)]
    unknown = {"x" * 1000 + str(number): 1 for number in range(500)}
    problem = check_problem(server.post("predict", {"sequences": [[1]], **unknown}), 422)
    assert len(problem["errors"]) == 20
    assert "x" * 65 not in json.dumps(problem)


@pytest.mark.parametrize("secret", ["s3cr3t" * 100, [["s3cr3t" * 100]], {"s": "s3cr3t" * 100}])
def test_input_is_hardly_echoed(server, secret):
    for body in (
        {"sequences": [[secret]]},
        {"sequences": secret},
        {"sequences": [[1]], "top_k": secret},
        {"sequences": [[1]], "positions": secret},
        {"sequences": [[1]], "attention": {"quantity": secret}},
        {"sequences": [[1]], "attention": {"diagnostics": [secret]}},
    ):
        problem = check_problem(server.post("predict", body), 422)
        assert "s3cr3t" * 5 not in problem["detail"]


def test_a_million_wrong_ids_cost_little(server):
    body = b'{"sequences": [' + b",".join([b"[" + b",".join([b'"wrong id"'] * 300) + b"]"] * 3334) + b"]}"
    assert body.count(b"wrong") > 1_000_000
    alive, stop = [], threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=server.url) as client:
            while not stop.is_set():
                alive.append(client.get("/healthz").status_code)

    watcher = threading.Thread(target=watch)
    # Health checks cost something too: count only what the refusal itself takes.
    before = server.cpu_seconds
    response = server.post("predict", body)
    used = server.cpu_seconds - before
    check_problem(response, 422)
    assert used < 1

    watcher.start()
    try:
        while not alive:
            time.sleep(0)
        seen = len(alive)
        check_problem(server.post("predict", body), 422)
        assert len(alive) > seen
    finally:
        stop.set()
        watcher.join()
    assert set(alive) == {200}


# Documents near enough to a request to get past the first check, and far enough to be wrong.
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
ids = st.integers(-1, 21) | st.sampled_from("abz")
sequences = st.lists(st.lists(ids, max_size=6), max_size=4)
steps = st.sampled_from(["all", "last", "1:", "::-1", "-2:5"]) | st.lists(st.integers(-7, 7), max_size=4)
chosen = steps | st.fixed_dictionaries({}, optional={"token": ids | values, "span": st.just([0, 2]) | values})
pairs = st.lists(st.tuples(st.integers(-4, 4), st.integers(-3, 3)), max_size=3)
words = st.sampled_from(["none", "mean", "max", "sum", "word", "subword"])
reduce = st.dictionaries(st.sampled_from(["layers", "heads", "queries", "tokens"]), words, max_size=2)
selections = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.just("all") | st.lists(st.integers(-4, 4), max_size=3) | values,
        "heads": st.just("all") | st.lists(st.integers(-3, 3), max_size=3) | values,
        "pairs": pairs | values,
        "queries": chosen | values,
        "keys": chosen | values,
        "special_tokens": st.sampled_from(["drop", "drop_renormalise"]) | values,
        "quantity": st.sampled_from(QUANTITIES) | values,
        "diagnostics": st.lists(st.sampled_from(sorted(DIAGNOSTICS)), max_size=3) | values,
        "exclude_bos": st.booleans() | values,
        "reduce": reduce | values,
        "top_keys": st.integers(-1, 4) | values,
        "min_weight": st.floats(-0.1, 1.1) | values,
        "compare": st.fixed_dictionaries({}, optional={"model": st.just("tiny"), "sequences": sequences}) | values,
        "ablate": pairs | values,
        "dry_run": st.booleans() | values,
        "dtype": st.sampled_from(["float16", "float32"]) | values,
    },
)
common = {"top_k": st.integers(-1, 22) | values, "positions": steps | values}
requests = st.fixed_dictionaries(
    {"sequences": sequences | values}, optional={**common, "attention": selections | values}
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(document=values | requests, route=st.sampled_from(["predict", "attention"]), accept=st.booleans())
def test_any_json_document_gets_an_answer_or_a_problem(server, document, route, accept):
    if route == "attention" and isinstance(document, dict) and isinstance(document.get("attention"), dict):
        document = {**document, **document.pop("attention")}
    headers = {"Accept": "application/x-safetensors, */*;q=0.5"} if accept else {}
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    response = server.post(route, body, headers=headers)
    if response.status_code != 200:
        check_problem(response)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200), route=st.sampled_from(["predict", "attention"]))
def test_any_bytes_get_a_problem(server, body, route):
    check_problem(server.post(route, body), 400)


def send(server, request: bytes) -> httpx.Response:
    """One raw request and its answer."""
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    status, *headers = head.decode("latin-1").split("\r\n")
    pairs = [header.split(": ", 1) for header in headers]
    return httpx.Response(int(status.split()[1]), headers=pairs, content=body)
