"""Captures against a running service: everything that can be asked of one, who may ask, and how it ends."""

import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from attnserve.service.captures.head import Head
from attnserve.service.captures.identity import CaptureId
from attnserve.service.formats.negotiation import BINARY, JSON, NPZ, PNG, SAFETENSORS
from attnserve.service.keys import hash_secret, make_secret
from tests.captures import make_capture
from tests.http.conftest import check_problem, talk, until
from tests.http.test_attention import weights_of
from tests.http.test_features import draw

pytestmark = pytest.mark.http

# Rows beyond one tile.
SEQUENCE = (list(range(20)) * 16)[:300]
NUM_LAYERS, NUM_HEADS = 3, 2
NEVER = str(CaptureId(name="0" * 32, expires=4_000_000_000))
OVER = str(CaptureId(name="0" * 32, expires=1))


def capture(served, sequence=SEQUENCE, *, headers=None, model="tiny", **fields):
    response = served.post("captures", {"sequences": [sequence], **fields}, headers=headers, model=model)
    assert response.status_code == 201, response.text
    return response.json()


def get(served, id, part="", **options):
    return served.client.get(f"/v1/captures/{id}{part}", **options)


def get_tensors(served, id, part, **options):
    response = get(served, id, part, headers={"Accept": SAFETENSORS}, **options)
    assert response.status_code == 200, response.text
    return load(response.content)


@pytest.fixture(scope="module")
def captured(server):
    return capture(server)


@pytest.fixture(scope="module")
def maps(server):
    """[layers, heads, queries, keys], from the attention route."""
    body = {"sequences": [SEQUENCE], "quantity": "weights"}
    response = server.post("attention", body, headers={"Accept": SAFETENSORS})
    return load(response.content)["sequences.0.weights"]


def test_a_capture_says_what_it_is(server, captured):
    attended = server.ask("attention", {"sequences": [SEQUENCE], "diagnostics": ["entropy"]})
    for name in ("model", "version", "predictions", "warnings", "tokens", "causal", "layers", "variants"):
        assert captured[name] == attended[name]
    assert (captured["length"], captured["num_heads"], captured["num_zooms"]) == (300, NUM_HEADS, 2)
    assert (captured["dtype"], captured["max_row_error"], captured["measured_rows"]) == ("float32", 0, None)
    assert [metric is None for metric in captured["metric"]] == [True, True, False]
    assert np.array(captured["metric"][2]).shape == (2, 8)
    # 3 layers of 2 heads of queries and keys of size 8, and value norms; and the metric of one.
    assert captured["num_bytes"] == 3 * 300 * (2 * 2 * 8 + 2) * 4 + 2 * 8 * 4


def test_it_is_where_the_answer_says(server):
    response = server.post("captures", {"sequences": [[1, 2, 3]]})
    assert response.headers["Location"] == f"/v1/captures/{response.json()['id']}"
    assert response.headers["Cache-Control"] == "no-store"
    assert get(server, response.json()["id"]).json() == response.json()
    assert server.client.head(response.headers["Location"]).status_code == 200


def test_maps_are_those_of_the_attention_route(server, captured, maps):
    found = get_tensors(server, captured["id"], "/attention", params={"quantity": "weights"})
    np.testing.assert_allclose(found["sequences.0.weights"], maps, atol=1e-6, rtol=0)
    part = {"quantity": "weights", "layers": "-1,0", "heads": "1", "queries": "0:2"}
    some = get(server, captured["id"], "/attention", params=part).json()
    assert (some["layers"], some["heads"], some["queries"]) == ([2, 0], [1], [[0, 1]])
    np.testing.assert_allclose(weights_of(some, 0), maps[[2, 0]][:, [1]][:, :, :2], atol=1e-6, rtol=0)
    assert {"predictions", "tokens"}.isdisjoint(some)
    assert some["capture"] == captured["id"]


def test_diagnostics_are_those_of_the_attention_route(server, captured):
    names = ["entropy", "sink", "self", "previous_token", "received"]
    expected = server.ask("attention", {"sequences": [SEQUENCE], "diagnostics": names})
    found = get(server, captured["id"], "/attention", params={"diagnostics": ",".join(names)}).json()
    assert len(found["diagnostics"]) == NUM_LAYERS * NUM_HEADS
    for one, other in zip(found["diagnostics"], expected["diagnostics"], strict=True):
        assert one.keys() == other.keys()
        for name in ("entropy_bits", "sink", "self", "previous_token", "received"):
            np.testing.assert_allclose(np.array(one[name], float), np.array(other[name], float), atol=1e-5)


@pytest.mark.parametrize("which", ["", "?diagnostics=cheap", "?diagnostics=all"])
def test_what_a_capture_cannot_answer_is_left_out_unless_named(server, captured, which):
    found = get(server, captured["id"], f"/attention{which}").json()
    assert len(found["diagnostics"]) == NUM_LAYERS * NUM_HEADS
    assert "layer_diagnostics" not in found
    assert "importance" not in found["diagnostics"][0]


def test_rows(server, captured, maps):
    found = get_tensors(server, captured["id"], "/rows/1/-1")
    np.testing.assert_allclose(found["weights"], maps[1, 1, -1:], atol=1e-6, rtol=0)
    found = get_tensors(server, captured["id"], "/rows/2/0", params={"queries": "7,-1,0"})
    np.testing.assert_allclose(found["weights"], maps[2, 0, [7, -1, 0]], atol=1e-6, rtol=0)
    as_json = get(server, captured["id"], "/rows/2/0?queries=7,-1,0&format=json").json()
    assert (as_json["layer"], as_json["head"], as_json["queries"]) == (2, 0, [7, 299, 0])
    np.testing.assert_array_equal(np.array(as_json["weights"], np.float32), found["weights"])


def test_tiles(server, captured, maps):
    for y, x in ((0, 0), (1, 0), (0, 1), (1, 1)):
        found = get_tensors(server, captured["id"], f"/tiles/0/1/1/{y}/{x}")["tile"]
        expected = maps[0, 1, 256 * y : 256 * (y + 1), 256 * x : 256 * (x + 1)]
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    whole = get_tensors(server, captured["id"], "/tiles/0/1/0/0/0")["tile"]
    np.testing.assert_allclose(whole, maps[0, 1].reshape(150, 2, 150, 2).max((1, 3)), atol=1e-6, rtol=0)


def test_thumbnails(server, captured, maps):
    found = get_tensors(server, captured["id"], "/thumbnails")["thumbnails"]
    padded = np.zeros((NUM_LAYERS, NUM_HEADS, 304, 304), np.float32)
    padded[..., :300, :300] = maps
    expected = padded.reshape(NUM_LAYERS, NUM_HEADS, 38, 8, 38, 8).max((3, 5))
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    some = get_tensors(server, captured["id"], "/thumbnails?layers=2,0&heads=1")["thumbnails"]
    np.testing.assert_array_equal(some, found[[2, 0]][:, [1]])


def test_queries_and_keys_make_the_map(server, captured, maps):
    found = get_tensors(server, captured["id"], "/qk/1/0")
    scale = get(server, captured["id"], "/qk/1/0?format=json").json()["scale"]
    scores = scale * found["query"].astype(float) @ found["key"].astype(float).T
    weights = np.tril(scores**2 / (1 + scores**2)) / (found["normaliser"][:, None] + 0.001)
    np.testing.assert_allclose(weights, maps[1, 0], atol=1e-5)


def test_half_the_memory_at_a_cost_that_is_told(server, maps):
    half = capture(server, store="float16")
    whole = 3 * 300 * 2 * 2 * 8 * 4
    assert half["num_bytes"] == capture(server)["num_bytes"] - whole // 2
    assert half["dtype"] == "float16"
    assert half["measured_rows"] == 300
    found = get_tensors(server, half["id"], "/attention", params={"quantity": "weights"})["sequences.0.weights"]
    error = np.abs(found - maps).sum(-1).max() / 2
    assert 0 < error < 0.02
    assert half["max_row_error"] == pytest.approx(error, rel=0.02)
    for part in ("", "/rows/0/0", "/attention?quantity=received"):
        told = float(get(server, half["id"], part).headers["Attention-Store-Row-Error"])
        assert told == pytest.approx(half["max_row_error"], rel=0.01)


def test_some_layers(server):
    some = capture(server, [1, 2, 3], layers=[2, 0])
    assert (some["layers"], some["variants"]) == ([0, 2], ["dot_product", "elliptical"])
    assert get(server, some["id"], "/attention").json()["layers"] == [0, 2]
    assert get_tensors(server, some["id"], "/thumbnails")["thumbnails"].shape == (2, 2, 3, 3)
    for part, field in (
        ("/rows/1/0", "layer"),
        ("/attention?layers=0:2", "layers"),
        ("/thumbnails?layers=1", "layers"),
    ):
        response = get(server, some["id"], part)
        assert check_problem(response, 422) == f"{field}: expected layers that were captured, 0, 2, got 1"


@pytest.mark.parametrize("part", ["/rows/0/0", "/thumbnails", "/tiles/0/0/0/0/0", "/attention?quantity=received"])
@pytest.mark.parametrize(
    ("word", "media_type"),
    [("json", JSON), ("safetensors", SAFETENSORS), ("npz", NPZ), ("binary", BINARY), ("png", PNG)],
)
def test_formats_by_name_and_by_accept(server, captured, part, word, media_type):
    by_name = get(server, captured["id"], part, params={"format": word} | dict(httpx.URL(part).params))
    by_accept = get(server, captured["id"], part, headers={"Accept": media_type})
    for response in (by_name, by_accept):
        assert response.status_code == 200
        assert response.headers["Content-Type"] == media_type
    assert by_name.content == by_accept.content
    if word == "png":
        with Image.open(io.BytesIO(by_name.content)) as image:
            image.verify()


def test_an_image_in_a_page_is_a_picture(server, captured):
    accept = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
    response = get(server, captured["id"], "/tiles/0/0/0/0/0", headers={"Accept": accept})
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == (150, 150)


def test_what_a_client_has_is_not_sent_again(server, captured):
    for part in ("", "/rows/0/0", "/attention?queries=last", "/thumbnails", "/tiles/0/0/0/0/0", "/qk/0/0"):
        first = get(server, captured["id"], part)
        tag = first.headers["ETag"]
        assert first.headers["Cache-Control"].startswith("private, max-age=")
        again = get(server, captured["id"], part, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == tag
        other = get(server, captured["id"], part, headers={"If-None-Match": tag, "Accept-Encoding": "gzip"})
        assert other.status_code == 200


def test_a_gateway_names_it(server):
    name = "5f1b7a3e-0c7d-4a53-9d0b-0242ac120002"
    made = capture(server, [1, 2], headers={"Capture-Id": name})
    assert made["id"].partition(".")[0] == name
    # Its gateway says the name once more, of everything that is asked.
    assert get(server, made["id"], headers={"Capture-Id": name}).status_code == 200
    twice = server.post("captures", {"sequences": [[1]]}, headers={"Capture-Id": name})
    assert "Capture-Id" in check_problem(twice, 409)
    wrong = server.post("captures", {"sequences": [[1]]}, headers={"Capture-Id": "short"})
    assert "Capture-Id: expected 16 to 64 letters" in check_problem(wrong, 422)


@pytest.mark.parametrize(
    ("part", "status", "field"),
    [
        ("/attention?layers=99", 422, "layers[0]"),
        ("/attention?heads=-9", 422, "heads[0]"),
        ("/attention?queries=300:", 422, "queries"),
        ("/attention?queries=1000", 422, "queries[0]"),
        ("/attention?quantity=colours", 422, "quantity"),
        ("/attention?quantity=metric", 422, "quantity"),
        ("/attention?diagnostics=collapse", 422, "diagnostics"),
        ("/attention?diagnostics=nothing", 422, "diagnostics[0]"),
        ("/attention?compare={}", 422, "compare"),
        ("/attention?ablate=[[0,0]]", 422, "ablate"),
        ("/attention?dtype=float64", 422, "dtype"),
        ("/attention?format=xml", 422, "format"),
        ("/attention?format=png", 422, "format"),
        ("/attention?quantity=weights", 413, "queries"),
        ("/rows/9/0", 422, "layer"),
        ("/rows/0/-9", 422, "head"),
        ("/rows/a/0", 422, "layer"),
        ("/rows/0/0?queries=", 422, "queries"),
        ("/rows/0/0?queries=300", 422, "queries[0]"),
        ("/rows/0/0?queries=all&format=json", 413, "queries"),
        ("/rows/0/0?rows=1", 422, "rows"),
        ("/thumbnails?layers=3", 422, "layers[0]"),
        ("/thumbnails?heads=all,all", 422, "heads"),
        ("/thumbnails?dtype=png", 422, "dtype"),
        ("/thumbnails?format=png&heads=" + ",".join(["0"] * 171), 413, "layers"),
        ("/tiles/0/0/2/0/0", 422, "zoom"),
        ("/tiles/0/0/-1/0/0", 422, "zoom"),
        ("/tiles/0/0/1/2/0", 422, "y"),
        ("/tiles/0/0/0/0/1", 422, "x"),
        ("/qk/0/0?dtype=uint8_sqrt", 422, "dtype"),
        ("/qk/0/0?format=png", 422, "format"),
        ("?format=npz", 422, "format"),
    ],
)
def test_wrong_parts_are_named(server, captured, part, status, field):
    response = get(server, captured["id"], part, headers={"Accept": "*/*"} if "/rows" in part else {})
    check_problem(response, status)
    assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("name", ["quantity", "diagnostics"])
def test_what_is_said_to_be_allowed_is(server, captured, name):
    detail = check_problem(get(server, captured["id"], f"/attention?{name}=colours"), 422)
    allowed = detail.partition("expected ")[2].partition(", got ")[0].rpartition("one of ")[2].split(", ")
    assert len(allowed) > 5
    for word in allowed:
        assert get(server, captured["id"], f"/attention?queries=last&{name}={word}").status_code == 200


@pytest.mark.parametrize("part", ["", "/attention", "/rows/0/0", "/thumbnails", "/tiles/0/0/0/0/0", "/qk/0/0"])
@pytest.mark.parametrize(("id", "status"), [("nope", 404), ("0" * 32, 404), (NEVER, 410), (OVER, 410)])
def test_captures_that_are_none(server, part, id, status):
    response = get(server, id, part)
    check_problem(response, status)
    assert response.json()["errors"][0]["field"] == "capture"


def test_deleted_is_gone(server):
    made = capture(server, [1, 2])
    assert server.client.delete(f"/v1/captures/{made['id']}").status_code == 204
    for response in (get(server, made["id"]), server.client.delete(f"/v1/captures/{made['id']}")):
        check_problem(response, 410)
    check_problem(server.client.delete("/v1/captures/nope"), 404)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sequences": [[1], [2]]}, "sequences"),
        ({"layers": [9]}, "layers[0]"),
        ({"store": "float8"}, "store"),
        ({"keep_seconds": 301}, "keep_seconds"),
        ({"quantity": "weights"}, "quantity"),
    ],
)
def test_wrong_captures_are_named(server, fields, field):
    response = server.post("captures", {"sequences": [[1]], **fields})
    check_problem(response, 422)
    assert response.json()["errors"][0]["field"] == field


def test_versions(server):
    made = server.client.post("/v1/models/tiny/versions/1/captures", json={"sequences": [[1]]})
    assert made.status_code == 201
    check_problem(server.client.post("/v1/models/tiny/versions/2/captures", json={"sequences": [[1]]}), 404)


def test_many_at_once_agree(server, captured, maps):
    parts = [f"/tiles/{layer}/{head}/{zoom}/0/0" for layer in range(3) for head in range(2) for zoom in (0, 1)]
    parts += [f"/rows/{layer}/{head}?queries=all" for layer in range(3) for head in range(2)]
    fresh = capture(server)["id"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda part: (part, get_tensors(server, fresh, part)), parts * 3))
    for part, tensors in answers:
        _, kind, layer, head, *_ = part.partition("?")[0].split("/")
        whole = maps[int(layer), int(head)]
        if kind == "rows":
            np.testing.assert_allclose(tensors["weights"], whole, atol=1e-6, rtol=0)
        elif part.split("/")[4] == "1":
            np.testing.assert_allclose(tensors["tile"], whole[:256, :256], atol=1e-6, rtol=0)
        else:
            np.testing.assert_allclose(tensors["tile"], whole.reshape(150, 2, 150, 2).max((1, 3)), atol=1e-6, rtol=0)


def test_metrics_count_them(server):
    before = read_metrics(server)
    made = capture(server, [1, 2, 3])
    server.client.delete(f"/v1/captures/{made['id']}")
    after = read_metrics(server)
    assert after["captures_taken_total"] == before["captures_taken_total"] + 1
    lost = 'captures_lost_total{reason="deleted"}'
    assert after[lost] == before[lost] + 1
    assert after["captures"] >= 0
    assert after["capture_bytes"] >= 0


def read_metrics(served):
    lines = (line.rpartition(" ") for line in served.client.get("/metrics").text.splitlines() if line[0] != "#")
    return {name: float(value) for name, _, value in lines}


@pytest.mark.parametrize("selector", [{"token": "cat"}, {"span": [4, 7]}])
def test_steps_are_found_by_what_stands_there(broad, selector):
    text = "the cat sat on the cat"
    made = capture(broad, text, model="text")
    assert made["tokens"][0][0]["text"] == text[slice(*made["tokens"][0][0]["span"])]
    query = {"queries": json.dumps(selector), "format": "json"}
    found = get(broad, made["id"], "/rows/0/0", params=query).json()["queries"]
    body = {"sequences": [text], "queries": selector, "quantity": "weights"}
    assert [found] == broad.ask("attention", body, model="text")["queries"]
    assert found


@pytest.mark.parametrize("name", ["leading", "halves", "tagger"])
def test_captures_of_every_kind_of_model(broad, name):
    sequence = "the cat" if name == "tagger" else draw(9)[0]
    made = capture(broad, sequence, model=name)
    assert made["dtype"] == ("float16" if name == "halves" else "float32")
    body = {"sequences": [sequence], "quantity": "weights"}
    expected = load(broad.post("attention", body, model=name, headers={"Accept": SAFETENSORS}).content)
    found = get_tensors(broad, made["id"], "/attention?quantity=weights")
    np.testing.assert_allclose(found["sequences.0.weights"], expected["sequences.0.weights"], atol=1e-6, rtol=0)
    tile = get_tensors(broad, made["id"], "/tiles/0/0/0/0/0")["tile"]
    np.testing.assert_allclose(tile, expected["sequences.0.weights"][0, 0], atol=1e-6, rtol=0)
    assert made["length"] == len(made["tokens"][0]) == len(tile)


@pytest.fixture(scope="module")
def guarded(bundles, start_server, tmp_path_factory):
    """A service of small means, whose captures show maps only, and the secrets of two clients."""
    secrets = {name: make_secret() for name in ("anne", "bob", "carl")}
    scopes = {"anne": ["attention"], "bob": ["attention"], "carl": ["predict"]}
    entries = [
        {"name": name, "sha256": hash_secret(secret).hex(), "scopes": scopes[name]} for name, secret in secrets.items()
    ]
    # Room for three of 300 steps.
    flags = (
        "--keys",
        json.dumps(entries),
        "--captures",
        "maps",
        "--capture-bytes",
        "500000",
        "--capture-seconds",
        "60",
    )
    with start_server(bundles, *flags) as served:
        yield served, {name: {"X-Api-Key": secret} for name, secret in secrets.items()}
    assert "Traceback" not in served.log.read_text()


def test_it_belongs_to_the_key_that_made_it(guarded):
    served, keys = guarded
    made = capture(served, [1, 2, 3], headers=keys["anne"])["id"]
    for part in ("", "/attention", "/rows/0/0", "/thumbnails", "/tiles/0/0/0/0/0"):
        assert get(served, made, part, headers=keys["anne"]).status_code == 200
        check_problem(get(served, made, part, headers=keys["bob"]), 404)
        check_problem(get(served, made, part, headers=keys["carl"]), 403)
        check_problem(get(served, made, part), 401)
    check_problem(served.client.delete(f"/v1/captures/{made}", headers=keys["bob"]), 404)
    assert served.client.delete(f"/v1/captures/{made}", headers=keys["anne"]).status_code == 204
    check_problem(served.post("captures", {"sequences": [[1]]}, headers=keys["carl"]), 403)


def test_queries_and_keys_are_handed_out_nowhere(guarded):
    served, keys = guarded
    made = capture(served, [1, 2, 3], headers=keys["anne"])["id"]
    anne = keys["anne"]
    for part in ("/qk/0/0", "/attention?quantity=qk"):
        assert "queries and keys are not handed out for tiny" in check_problem(
            get(served, made, part, headers=anne), 403
        )
    refused = served.post("attention", {"sequences": [[1]], "quantity": "qk"}, headers=anne)
    assert check_problem(refused, 403).startswith("quantity: ")
    assert served.post("attention", {"sequences": [[1]], "quantity": "weights"}, headers=anne).status_code == 200


def test_the_least_recently_used_makes_room(guarded):
    served, keys = guarded
    anne = keys["anne"]
    made = [capture(served, headers=anne)["id"] for _ in range(3)]
    assert get(served, made[0], headers=anne).status_code == 200
    capture(served, headers=anne)
    assert get(served, made[0], headers=anne).status_code == 200
    check_problem(get(served, made[1], headers=anne), 410)


def post_to(app, **headers):
    """A capture asked of an app whose engine must not run."""
    answers = []

    async def conversation(client):
        path = "/v1/models/tiny/captures"
        answers.append(await client.post(path, json={"sequences": [SEQUENCE]}, headers=headers))

    talk(app, conversation)
    return answers[0]


def test_what_there_is_no_room_for_is_refused_before_it_is_computed(make_app):
    app, engine, _ = make_app(capture_bytes=10_000)
    assert "captures may take 10000 bytes, this one needs" in check_problem(post_to(app), 413)
    assert not engine.seen


def test_switched_off(make_app):
    app, engine, _ = make_app(captures={"tiny": "off"})
    assert check_problem(post_to(app), 403).startswith("model: captures are switched off for tiny")
    assert not engine.seen


def test_the_memory_it_takes_on_its_way_is_counted(make_app):
    app, engine, _ = make_app(max_pending_bytes=100_000)
    assert "may take 100000 bytes" in check_problem(post_to(app), 413)
    assert app.state.budget.num_bytes == 0
    assert not engine.seen


def test_what_is_remembered_counts_though_nobody_waits_any_more(make_app, monkeypatch):
    app, *_ = make_app()
    store, kept = app.state.captures, make_capture(expires=4_000_000_000, length=1100)
    store.add(kept)
    before, go_on, compute = store.num_bytes, threading.Event(), Head._pool_all

    def compute_later(head, factor):
        go_on.wait()
        return compute(head, factor)

    monkeypatch.setattr(Head, "_pool_all", compute_later)

    async def conversation(client):
        late = await client.get(f"/v1/captures/{kept.id}/tiles/0/0/0/0/0", headers={"Timeout-Ms": "20"})
        check_problem(late, 504)
        assert store.num_bytes == before
        go_on.set()
        await until(lambda: store.num_bytes > before)

    talk(app, conversation)
    assert store.num_bytes == kept.num_bytes


def test_a_capture_outlives_its_model(bundles, start_server, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(bundles, repository)
    shutil.copytree(bundles / "tiny" / "1", repository / "another" / "1")
    with start_server(repository, "--poll-seconds", "0.1") as served:
        made = capture(served)
        row = get_tensors(served, made["id"], "/rows/0/0")["weights"]
        shutil.rmtree(repository / "tiny")
        while served.client.get("/v1/models/tiny").status_code != 404:
            served.client.get("/healthz")
        np.testing.assert_array_equal(get_tensors(served, made["id"], "/rows/0/0")["weights"], row)
        assert get(served, made["id"], "/attention").status_code == 200
