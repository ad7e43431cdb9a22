"""Every route, and every problem it may answer with: provoked, in one shape, and documented."""

import asyncio

import orjson
import pytest

from attnserve.bundle import BundleError
from tests.http.conftest import check_problem, talk, until

pytestmark = pytest.mark.http

ASKING = {400, 404, 406, 413, 415, 422, 429, 503, 504}
ABOUT_A_MODEL = {404, 503}
CHANGING = {400, 404, 409, 413, 415}
V1, V2 = "/v1/models/{model}", "/v2/models/{model}"
VERSION = "/versions/{version}"
# By route; 405 goes without saying, and is checked of all.
ROUTES = {
    **{f"{V1}{version}/{end}": ASKING for version in ("", VERSION) for end in ("predict", "attention")},
    **{f"{V2}{version}/infer": ASKING - {406} for version in ("", VERSION)},
    **{f"{V1}{version}": ABOUT_A_MODEL for version in ("", VERSION)},
    **{
        f"{V2}{version}{end}": ABOUT_A_MODEL for version in ("", VERSION) for end in ("", "/config", "/ready", "/stats")
    },
    "/v1/models": set(),
    "/v2/models/stats": set(),
    "/v2": set(),
    "/v2/health/live": set(),
    "/v2/health/ready": {503},
    "/v2/repository/index": {400, 413, 415},
    "/v2/repository/models/{model}/load": CHANGING,
    "/v2/repository/models/{model}/unload": CHANGING,
    "/healthz": set(),
    "/readyz": {503},
    "/metrics": set(),
}
# FastAPI's own.
PAGES = {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
# Whoever asks, whatever for.
ANYWHERE = {"500", "default", "200", "401", "403"}


def is_inference(path):
    return path.endswith(("/predict", "/attention", "/infer"))


def body_of(path, *sequence):
    """A question, right but for its ids."""
    if path.endswith("/infer"):
        tensor = {"name": "tokens", "datatype": "INT64", "shape": [1, len(sequence)], "data": sequence}
        return orjson.dumps({"inputs": [tensor]})
    return orjson.dumps({"sequences": [sequence]}) if is_inference(path) else b"{}"


async def ask(client, path, body=None, *, model="tiny", version=1, **headers):
    url = path.format(model=model, version=version)
    if path.endswith(("/predict", "/attention", "/infer", "/index", "/load", "/unload")):
        headers = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        return await client.post(url, content=body_of(path, 1) if body is None else body, headers=headers)
    return await client.get(url)


# How to come by each: makes an app, and returns what answers.


async def full(path, client, app, engine, batcher):
    # What is asked for does not matter to the queue, and the scripted engine knows no queries and keys.
    waiting = path.replace("attention", "predict")
    tasks = [asyncio.create_task(ask(client, waiting))]
    await asyncio.to_thread(engine.started.acquire)
    tasks += [asyncio.create_task(ask(client, waiting)) for _ in range(2)]
    await until(lambda: batcher.num_waiting == 2)
    answer = await ask(client, path)
    engine.release.release(100)
    assert {each.status_code for each in await asyncio.gather(*tasks)} == {200}
    return answer


async def conflict(path, client, app, *_):
    def refuse(*_):
        raise BundleError("aliases.json: cannot be written: Read-only file system")

    app.state.catalogue.repository.activate = refuse
    return await ask(client, path)


WAYS = {
    400: lambda path, client, *_: ask(client, path, b"{"),
    404: lambda path, client, *_: ask(client, path, model="nope"),
    406: lambda path, client, *_: ask(client, path, Accept="text/html"),
    409: conflict,
    413: lambda path, client, *_: ask(client, path, b" " * 100_000),
    415: lambda path, client, *_: ask(client, path, Content_Encoding="br"),
    422: lambda path, client, *_: ask(client, path, body_of(path, 99)),
    429: full,
    503: lambda path, client, *_: ask(client, path),
    504: lambda path, client, *_: ask(client, path, Timeout_Ms="20"),
}


@pytest.fixture
def provoke(make_app):
    def run(path, way, **options):
        app, engine, batcher = make_app(max_body_bytes=4096, **options)
        answers = []

        async def conversation(client):
            answers.append(await way(path, client, app, engine, batcher))

        talk(app, conversation)
        return answers[0]

    return run


def test_every_route_is_here(make_app):
    app, *_ = make_app()
    assert {route.path for route in app.routes} == {*ROUTES, *PAGES}


@pytest.mark.parametrize("path", ROUTES)
def test_what_may_happen_is_documented(make_app, path):
    app, *_ = make_app()
    for operation in app.openapi()["paths"][path].values():
        assert {int(status) for status in operation["responses"].keys() - ANYWHERE} == ROUTES[path]
        for status in ROUTES[path]:
            (media_type,) = operation["responses"][str(status)]["content"]
            assert media_type == "application/problem+json"


@pytest.mark.parametrize(("path", "status"), [(path, status) for path in ROUTES for status in sorted(ROUTES[path])])
def test_what_is_documented_may_happen(provoke, path, status):
    response = provoke(path, WAYS[status], loaded=status != 503)
    detail = check_problem(response, status)
    assert response.json()["error"] == detail
    assert detail
    if status in (429, 503):
        assert 1 <= int(response.headers["Retry-After"]) <= 60


@pytest.mark.parametrize("path", [path for path in ROUTES if VERSION in path])
@pytest.mark.parametrize("version", ["2", "0", "x", "01", "9" * 300])
def test_versions_that_are_not_served(provoke, path, version):
    response = provoke(path, lambda path, client, *_: ask(client, path, version=version))
    check_problem(response, 404)
    assert [fault["field"] for fault in response.json()["errors"]] == ["version"]


@pytest.mark.parametrize("path", [*ROUTES, *sorted(PAGES)])
def test_methods_that_are_not_allowed(provoke, path):
    url = path.format(model="tiny", version=1)
    response = provoke(path, lambda path, client, *_: client.delete(url))
    detail = check_problem(response, 405)
    assert response.json()["error"] == detail
    allowed = {method.strip() for method in response.headers["Allow"].split(",")}
    assert allowed <= {"GET", "HEAD", "POST"}
    assert ("POST" in allowed) == path.endswith(("/predict", "/attention", "/infer", "/index", "/load", "/unload"))


@pytest.mark.parametrize("path", [*ROUTES, "/nothing"])
def test_routes_that_are_none(provoke, path):
    url = f"{path.format(model='tiny', version=1)}/more"
    check_problem(provoke(path, lambda path, client, *_: client.get(url)), 404)
