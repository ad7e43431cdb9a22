"""Keys at the door: every route of the app, with every kind of key, with none, and with wrong ones."""

import json
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import APIRouter
from tritonclient.utils import InferenceServerException

from attnserve.service.app import create_app
from attnserve.service.catalogue import Catalogue
from attnserve.service.guard import Need, need_of, needs, needs_table
from attnserve.service.keys import SCOPES, hash_secret, make_secret, parse_keys
from attnserve.service.problems import MEDIA_TYPE
from attnserve.service.routing import PlainRoute, get
from attnserve.service.settings import Settings
from tests.http.conftest import PREDICT, check_problem, talk

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
# For browsers, about this service; they hold nothing of its models.
FASTAPIS_OWN = {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"}
OPEN = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
# A page, in no document.
VIEWER, VIEWERS_FILES = {"/", "/viewer/{file}"}, {"/", "/viewer/page.js"}
SCOPES_OF = {"none": (), **{scope: (scope,) for scope in SCOPES}, "all": SCOPES}
SECRETS = {name: make_secret() for name in SCOPES_OF}
ENTRIES = [
    {"name": f"key-{name}", "sha256": hash_secret(SECRETS[name]).hex(), "scopes": list(scopes)}
    for name, scopes in SCOPES_OF.items()
]
INFER = "/v2/models/tiny/infer"
TENSORS = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [3, 1, 4]}]}


def find_routes():
    """Every route of an app, those of routers inside it included."""

    def walk(routes):
        for route in routes:
            if hasattr(route, "original_router"):
                yield from walk(route.original_router.routes)
            else:
                yield route

    with tempfile.TemporaryDirectory() as folder:
        return list(walk(create_app(Catalogue(folder, Settings())).routes))


OURS = [route for route in find_routes() if isinstance(route, PlainRoute)]
ASKED = [(method, route) for route in OURS for method in sorted(route.methods)]
GUARDED = [(method, route) for method, route in ASKED if need_of(route.endpoint) is not Need.NOTHING]


def show(value):
    return getattr(value, "path", None) or str(value)


def bearer(name):
    return {"Authorization": f"Bearer {SECRETS[name]}"}


NO_CAPTURE = {"capture": "nothing", **dict.fromkeys(("layer", "head", "zoom", "y", "x"), 0)}


def path_of(route):
    # Those that change what is served are tried on nobody, and no checkpoint has such a file.
    model = "nobody" if need_of(route.endpoint) is Need.ADMIN else "tiny"
    return route.path.format(model=model, version=1, name="nobody", file="model.pt", id="nothing", **NO_CAPTURE)


def body_of(route, document):
    """A body that the route would take, if it takes JSON."""
    body = document["paths"][route.path].get("post", {}).get("requestBody", {"content": {"": {"examples": {}}}})
    examples = list(next(iter(body["content"].values()))["examples"].values())
    return examples[0]["value"] if examples else None


@pytest.fixture(scope="module")
def guarded(bundles, start_server):
    with start_server(bundles, "--keys", json.dumps(ENTRIES), "--log-format", "json") as served:
        yield served
    text = served.log.read_text()
    assert "Traceback" not in text
    assert "key-all" in text
    for entry in ENTRIES:
        assert entry["sha256"][:16] not in text
    assert not [secret for secret in SECRETS.values() if secret in text or secret[-16:] in text]


@pytest.fixture(scope="module")
def document(guarded):
    return guarded.client.get("/openapi.json").json()


def ask(served, method, route, document, **headers):
    return served.client.request(method, path_of(route), json=body_of(route, document), headers=headers)


def test_every_route_is_ours_or_open():
    others = {route.path for route in find_routes() if not isinstance(route, PlainRoute)}
    assert others == FASTAPIS_OWN
    assert {route.path for route in OURS if need_of(route.endpoint) is Need.NOTHING} == OPEN | VIEWER


@pytest.mark.http
def test_the_routes_are_those_of_the_document(document):
    assert {route.path for route in OURS} - VIEWER == set(document["paths"])


def test_a_route_that_does_not_say_what_it_needs_is_refused():
    router = APIRouter(route_class=PlainRoute)

    async def forgetful(_):
        raise AssertionError

    for declare in (router.get("/x"), router.post("/x"), get(router, "/x")):
        with pytest.raises(TypeError, match=r"endpoint forgetful: expected @needs\(Need\.\.\.\.\)"):
            declare(forgetful)
    # Above its route is too late.
    with pytest.raises(TypeError, match="forgetful"):
        needs(Need.KEY)(router.get("/x")(forgetful))


@pytest.mark.http
@pytest.mark.parametrize("path", sorted(FASTAPIS_OWN | OPEN | VIEWERS_FILES))
def test_open_routes_need_no_key_ever(guarded, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": ""}):
        for method in ("GET", "HEAD"):
            assert guarded.client.request(method, path, headers=headers).status_code == 200


@pytest.mark.http
@pytest.mark.parametrize("loaded", [True, False])
def test_open_routes_name_no_model(make_app, loaded):
    app, _, batcher = make_app(loaded=loaded)
    app.state.catalogue.failures.add("tiny", 2, "damaged", (), 0.0)

    async def conversation(client):
        for is_over in (False, True):
            if is_over:
                app.state.catalogue.is_loading = False
                batcher.close()
            for path in FASTAPIS_OWN | OPEN | VIEWERS_FILES:
                assert "tiny" not in (await client.get(path)).text

    talk(app, conversation)


WRONG = {
    "none": {},
    "unknown": {"Authorization": "Bearer " + make_secret()},
    "unknown, the other way": {"X-Api-Key": make_secret()},
    "empty": {"X-Api-Key": ""},
    "nothing after the scheme": {"Authorization": "Bearer"},
    "no scheme": {"Authorization": SECRETS["all"]},
    "another scheme": {"Authorization": f"Basic {SECRETS['all']}"},
    "almost": {"Authorization": f"Bearer {SECRETS['all']}x"},
    "its hash": {"X-Api-Key": ENTRIES[-1]["sha256"]},
    "its name": {"X-Api-Key": "key-all"},
    "no ASCII": {"X-Api-Key": b"\xff\xfe"},
    "two": {"X-Api-Key": f"{SECRETS['all']}, {SECRETS['all']}"},
    # One header counts, or it would not be clear which key answers for a request.
    "a wrong one and a right one": {"X-Api-Key": "wrong", "Authorization": f"Bearer {SECRETS['all']}"},
}


@pytest.mark.http
@pytest.mark.parametrize(("method", "route"), GUARDED, ids=show)
def test_without_a_known_key_it_is_401(guarded, document, method, route):
    for name, headers in WRONG.items():
        response = ask(guarded, method, route, document, **headers)
        assert response.status_code == 401, name
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.headers["Content-Type"] == MEDIA_TYPE
        if method == "HEAD":
            assert not response.content
            continue
        assert response.json()["status"] == 401
        (fault,) = response.json()["errors"]
        assert fault["field"] == ("X-Api-Key" if "X-Api-Key" in headers else "Authorization")
        assert not [value for value in map(str, headers.values()) if len(value) > 10 and value[-10:] in response.text]


@pytest.mark.http
@pytest.mark.parametrize("name", SCOPES_OF)
@pytest.mark.parametrize(("method", "route"), GUARDED, ids=show)
def test_a_key_opens_what_its_scopes_say(guarded, document, method, route, name):
    need = need_of(route.endpoint)
    for headers in (bearer(name), {"authorization": f"bearer  {SECRETS[name]}"}, {"X-Api-Key": SECRETS[name]}):
        response = ask(guarded, method, route, document, **headers)
        if need is Need.KEY or need.value in SCOPES_OF[name]:
            allowed = (200, 404, 422) if need is Need.ADMIN else (200,)
            assert response.status_code in ((201, 404) if "captures" in route.path else allowed), response.text
            continue
        assert response.status_code == 403
        assert "WWW-Authenticate" not in response.headers
        expected = (
            f"expected a key with the scope {need.value}, got key-{name} with {', '.join(SCOPES_OF[name]) or 'none'}"
        )
        if method != "HEAD":
            assert response.json()["errors"][0]["message"] == expected


@pytest.mark.http
def test_attention_beside_a_prediction_needs_both_scopes(guarded):
    body = {"sequences": [[1, 2, 3]], "attention": {}}
    for path in (PREDICT, PREDICT.replace("/predict", "/versions/1/predict")):
        for name, status in {"predict": 403, "attention": 403, "none": 403, "all": 200}.items():
            response = guarded.client.post(path, json=body, headers=bearer(name))
            assert response.status_code == status, response.text
        response = guarded.client.post(path, json=body, headers=bearer("predict"))
        assert check_problem(response, 403) == (
            "attention: expected a key with the scope attention, got key-predict with predict"
        )
        # What is not there is not asked for.
        for value in ({"attention": None}, {"continue": 2}, {}):
            response = guarded.client.post(path, json={"sequences": [[1]], **value}, headers=bearer("predict"))
            assert response.status_code == 200


@pytest.mark.http
@pytest.mark.parametrize("output", ["weights", "query", "key", "hidden", "value_norm"])
def test_optional_outputs_need_both_scopes(guarded, output):
    for path in (INFER, INFER.replace("/infer", "/versions/1/infer")):
        for outputs in ([f"layers.0.{output}"], ["logits", f"layers.1.{output}"]):
            body = {**TENSORS, "outputs": [{"name": name} for name in outputs]}
            for name, status in {"predict": 403, "attention": 403, "all": 200}.items():
                response = guarded.client.post(path, json=body, headers=bearer(name))
                assert response.status_code == status, response.text
            response = guarded.client.post(path, json=body, headers=bearer("predict"))
            assert response.json()["errors"][0]["field"] == "outputs"
        for body in (TENSORS, {**TENSORS, "outputs": [{"name": "logits"}]}):
            assert guarded.client.post(path, json=body, headers=bearer("predict")).status_code == 200


@pytest.mark.http
def test_tritonclient_sends_a_key(guarded):
    with triton.InferenceServerClient(guarded.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        tokens = triton.InferInput("tokens", [1, 3], "INT64")
        tokens.set_data_from_numpy(np.array([[3, 1, 4]]))
        for headers in ({"Authorization": f"Bearer {SECRETS['all']}"}, {"X-Api-Key": SECRETS["all"]}):
            assert client.is_model_ready("tiny", headers=headers)
            assert client.get_model_metadata("tiny", headers=headers)["name"] == "tiny"
            result = client.infer("tiny", [tokens], headers=headers)
            assert result.as_numpy("logits").shape == (1, 1, 20)
        for headers, status in ((None, "401"), (bearer("none"), "403")):
            with pytest.raises(InferenceServerException, match="expected a key") as caught:
                client.infer("tiny", [tokens], headers=headers)
            assert caught.value.status() == status


@pytest.mark.http
def test_what_is_documented_is_what_is_needed(document):
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    for method, route in ASKED:
        if method == "HEAD" or route.path in VIEWER:
            continue
        operation, need = document["paths"][route.path][method.lower()], need_of(route.endpoint)
        found = {status for status in ("401", "403") if status in operation["responses"]}
        roles = [] if need is Need.KEY else [need.value]
        if need is Need.NOTHING:
            assert (operation.get("security", []), found) == ([], set())
        else:
            assert operation["security"] == [{"bearer": roles}, {"header": roles}]
            assert found == ({"401"} if need is Need.KEY else {"401", "403"})


@pytest.mark.http
def test_a_name_is_all_that_is_left_of_a_key(guarded):
    headers = {**bearer("predict"), "X-Request-Id": "who-was-it"}
    assert guarded.client.post(PREDICT, json={"sequences": [[1]]}, headers=headers).status_code == 200
    guarded.client.get("/v1/models", headers={"X-Api-Key": "nobody", "X-Request-Id": "nobody-was-it"})
    metrics = guarded.client.get("/metrics", headers=bearer("none")).text
    assert 'status="401"' in metrics
    seen = [guarded.client.get(path, headers=bearer("none")).text for path in ("/v1/models", "/v1/models/tiny", "/v2")]
    for text in (metrics, *seen):
        assert "key-" not in text
        assert not [entry for entry in ENTRIES if entry["sha256"][:16] in text]
        assert not [secret for secret in SECRETS.values() if secret[-16:] in text]
    lines = [json.loads(line) for line in guarded.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "who-was-it"]
    assert line["key"] == "key-predict"
    assert line["message"].endswith(" ms, key key-predict")
    (line,) = [line for line in lines if line.get("request_id") == "nobody-was-it"]
    assert "key" not in line


@pytest.mark.http
def test_keys_change_while_it_serves(bundles, start_server, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(json.dumps(ENTRIES[:1]))
    with start_server(bundles, "--keys-file", str(path)) as served:
        assert served.client.get("/v1/models", headers=bearer("none")).status_code == 200
        assert served.client.get("/v1/models", headers=bearer("all")).status_code == 401
        path.write_text(json.dumps(ENTRIES[1:]))
        # Looked at once a second.
        while served.client.get("/v1/models", headers=bearer("all")).status_code == 401:
            time.sleep(0.01)
        assert served.client.get("/v1/models", headers=bearer("none")).status_code == 401
        path.write_text("nonsense")
        assert served.client.get("/v1/models", headers=bearer("all")).status_code == 200


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (bearer("none"), 403)])
def test_the_body_is_not_read_first(make_app, headers, status):
    app, _, _ = make_app(keys=json.dumps(ENTRIES))
    sent = []

    async def never():
        raise AssertionError("read")
        yield

    async def conversation(client):
        response = await client.post(PREDICT, content=never(), headers=headers)
        sent.append(check_problem(response, status))
        # Nor is it told which models there are.
        other = await client.post(PREDICT.replace("tiny", "none"), headers=headers)
        assert check_problem(other, status) == sent[0]

    talk(app, conversation)
    assert len(sent) == 1


def test_without_keys_headers_change_nothing(make_app):
    app, _, _ = make_app()
    assert app.state.keyring is None

    async def conversation(client):
        for headers in ({}, *WRONG.values()):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200

    talk(app, conversation)


def test_the_table_of_the_page_is_the_one_the_code_prints():
    page = PAGE.read_text("utf-8")
    assert page.split("<!-- needs -->\n")[1].split("<!-- /needs -->")[0] == needs_table(OURS)
    assert not [path for path in FASTAPIS_OWN if f"`{path}`" not in page]


def test_the_page_names_every_scope_and_shows_a_keys_file():
    page = PAGE.read_text("utf-8")
    (shown,) = re.findall(r"^```yaml\n(- .*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [key.name for key in parse_keys(shown)] == ["batch-job", "prometheus"]
    assert not [scope for scope in SCOPES if f"| `{scope}` |" not in page]
