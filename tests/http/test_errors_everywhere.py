"""Every route, and every problem it may answer with: provoked, in one shape, and documented."""

import asyncio
import errno
import os

import orjson
import pytest

from attnserve.bundle import BundleError
from attnserve.service.captures.identity import CaptureId
from attnserve.service.problems import NotInstalled
from tests.captures import make_capture
from tests.fake_exports import FakeQueue, job_id, make_desk
from tests.http.conftest import check_problem, talk, until

pytestmark = pytest.mark.http

ASKING = {400, 404, 406, 413, 415, 422, 429, 503, 504}
ABOUT_A_MODEL = {404, 503}
CHANGING = {400, 404, 409, 413, 415}
V1, V2 = "/v1/models/{model}", "/v2/models/{model}"
VERSION = "/versions/{version}"
UPLOADING = {400, 409, 412, 413, 415, 422, 429, 503, 504, 507}
CHECKPOINT = "/v1/checkpoints/{name}"
EXPORTS, EXPORT = "/v1/exports", "/v1/exports/{id}"
NO_QUEUE = {501, 503}
CAPTURE = "/v1/captures/{capture}"
VIEWING = {404, 406, 410, 413, 422, 429, 504}
# By route, and by method where there are several; 405 goes without saying, and is checked of all.
ROUTES = {
    "/v1/checkpoints": {503},
    f"GET {CHECKPOINT}": {404, 503},
    f"DELETE {CHECKPOINT}": {404, 409, 503},
    f"PUT {CHECKPOINT}/{{file}}": UPLOADING,
    f"DELETE {CHECKPOINT}/{{file}}": {404, 503},
    f"POST {EXPORTS}": {400, 409, 413, 415, 422, *NO_QUEUE},
    f"GET {EXPORTS}": {422, *NO_QUEUE},
    f"GET {EXPORT}": {404, *NO_QUEUE},
    f"DELETE {EXPORT}": {404, 409, *NO_QUEUE},
    f"{EXPORT}/events": {400, 404, 406, 429, *NO_QUEUE},
    **{f"{V1}{version}/{end}": ASKING for version in ("", VERSION) for end in ("predict", "attention")},
    **{f"{V1}{version}/captures": ASKING | {409} for version in ("", VERSION)},
    f"GET {CAPTURE}": VIEWING - {413},
    f"DELETE {CAPTURE}": {404, 410},
    f"{CAPTURE}/attention": VIEWING,
    f"{CAPTURE}/rows/{{layer}}/{{head}}": VIEWING,
    f"{CAPTURE}/thumbnails": VIEWING,
    f"{CAPTURE}/tiles/{{layer}}/{{head}}/{{zoom}}/{{y}}/{{x}}": VIEWING,
    f"{CAPTURE}/qk/{{layer}}/{{head}}": VIEWING,
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
# FastAPI's own, and the viewer's.
PAGES = {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/", "/viewer/{file}"}
# Whoever asks, whatever for.
ANYWHERE = {"500", "default", "200", "201", "202", "204", "401", "403", "431"}
PATHS = {route.split()[-1] for route in ROUTES}
NAMES = {"model": "tiny", "version": 1, "name": "mine", "file": "model.safetensors", "id": job_id(1)}
KEPT, OVER = (CaptureId(name="a" * 16, expires=end) for end in (4_000_000_000, 1))
NAMES |= {"capture": KEPT, "layer": 1, "head": 0, "zoom": 0, "y": 0, "x": 0}
ASKED = b'{"checkpoint": "mine", "model": "tiny", "version": 2}'
POSTED = ("/predict", "/infer", "/captures", "/index", "/load", "/unload")


def is_posted(path):
    return path.endswith(POSTED) or (path.startswith(V1) and path.endswith("/attention"))


def is_inference(path):
    return path.endswith(("/predict", "/attention", "/infer", "/captures"))


def body_of(path, *sequence):
    """A question, right but for its ids."""
    if path.endswith("/infer"):
        tensor = {"name": "tokens", "datatype": "INT64", "shape": [1, len(sequence)], "data": sequence}
        return orjson.dumps({"inputs": [tensor]})
    return orjson.dumps({"sequences": [sequence]}) if is_inference(path) else b"{}"


async def ask(client, route, body=None, *, names=None, **headers):
    *method, path = route.split()
    url = path.format(**NAMES | (names or {}))
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    if is_posted(path):
        headers = {"Content-Type": "application/json", **headers}
        return await client.post(url, content=body_of(path, 1) if body is None else body, headers=headers)
    if method == ["POST"]:
        return await client.post(url, content=ASKED if body is None else body, headers=headers)
    if method == ["PUT"]:
        return await client.put(url, content=b"weights" if body is None else body, headers=headers)
    return await client.request(method[0] if method else "GET", url, headers=headers)


# How to come by each: makes an app, and returns what answers.


async def full(path, client, app, engine, batcher):
    # What is asked for does not matter to the queue, and the scripted engine knows no queries and keys.
    waiting = path.replace("attention", "predict").replace("captures", "predict")
    tasks = [asyncio.create_task(ask(client, waiting))]
    await asyncio.to_thread(engine.started.acquire)
    tasks += [asyncio.create_task(ask(client, waiting)) for _ in range(2)]
    await until(lambda: batcher.num_waiting == 2)
    answer = await ask(client, path)
    engine.release.release(100)
    assert {each.status_code for each in await asyncio.gather(*tasks)} == {200}
    return answer


async def conflict(path, client, app, *_):
    if "exports" in path:
        # Under way to the version that is asked for; or over, and nothing to cancel.
        give_jobs(app, state="queued" if path.startswith("POST") else "failed")
        return await ask(client, path)
    if "checkpoints" in path:
        theirs = app.state.uploads.checkpoints.folder / "mine" / "notes.txt"
        await ask(client, f"PUT {CHECKPOINT}/{{file}}")
        theirs.write_text("precious")
        return await ask(client, path)

    if "captures" in path:
        return await ask(client, path, Capture_Id=KEPT.name)

    def refuse(*_):
        raise BundleError("aliases.json: cannot be written: Read-only file system")

    app.state.catalogue.repository.activate = refuse
    return await ask(client, path)


class BrokenDisk:
    """A store of which nothing can be read or written."""

    folder = "nowhere"

    def __init__(self, number):
        self.number = number

    def name_temporary(self):
        return self.folder

    def __getattr__(self, name):
        def fail(*_):
            raise OSError(self.number, os.strerror(self.number))

        return fail


def on_a_disk_that_is(number):
    def way(path, client, app, *_):
        app.state.uploads.checkpoints = BrokenDisk(number)
        return ask(client, path)

    return way


async def crowded(path, client, app, engine, batcher):
    if "exports" in path:
        give_jobs(app, state="running", max_watchers=0)
        return await ask(client, path)
    if "/v1/captures" in path:
        await occupy(app.state.encoding)
        app.state.encoding.max_waiting = 0
        return await view(path, client)
    if "checkpoints" not in path:
        return await full(path, client, app, engine, batcher)
    app.state.uploads.num_open = 4
    return await ask(client, path)


async def occupy(turns):
    """Let every thread of some be busy."""
    while not turns.locked():
        await turns.acquire()


async def view(path, client, **headers):
    """A part of a capture that is more than a glance."""
    more = {"/attention": "?quantity=weights", "/rows/{layer}/{head}": "?queries=all"}
    route = f"{path}{more.get(path.removeprefix(CAPTURE), '')}"
    return await ask(client, route, Accept="application/json;q=0.5, application/x-safetensors", **headers)


def too_large(path, client, app, *_):
    # Of captures an answer, of all others a question.
    return view(path, client) if "/v1/captures" in path else ask(client, path, b" " * 100_000)


async def late(path, client, app, *_):
    if "/v1/captures" in path:
        await occupy(app.state.encoding)
        await occupy(app.state.weighing)
        return await view(path, client, Timeout_Ms="20")

    async def never_ending():
        while True:
            await asyncio.sleep(0.001)
            yield b"x"

    return await ask(client, path, never_ending() if path.startswith("PUT") else None, Timeout_Ms="20")


def give_jobs(app, *, state, **options):
    """A queue in memory with one job."""
    queue = FakeQueue()
    queue.put(1, state=state)
    app.state.exports = make_desk(lambda: queue, app.state.catalogue, **options)
    return queue


def of_jobs(way):
    """Of exports, what comes of a queue with one job."""

    def prepared(path, client, app, *others):
        if "exports" in path:
            give_jobs(app, state="running")
        return way(path, client, app, *others)

    return prepared


def without_the_extra(path, client, app, *_):
    def open_queue():
        raise NotInstalled("exports need dbos")

    app.state.exports = make_desk(open_queue, app.state.catalogue)
    return ask(client, path)


def wrong(path, client, *_):
    if path == f"GET {EXPORTS}":
        return client.get(EXPORTS, params={"limit": 0})
    if "/v1/captures" in path:
        return ask(client, f"{path}?nothing=1")
    if path.startswith("PUT"):
        return ask(client, path, names={"file": "model.pt"})
    return ask(client, path, body_of(path, 99))


def unavailable(path, client, app, *_):
    if "exports" in path:
        give_jobs(app, state="running").is_down = True
        return ask(client, path)
    return on_a_disk_that_is(errno.EROFS)(path, client, app) if "checkpoints" in path else ask(client, path)


NO_NAMES = {"model": "nope", "name": "nope", "id": job_id(2), "capture": "nope"}
WAYS = {
    400: of_jobs(lambda path, client, *_: ask(client, path, b"{", Content_Digest="none", Last_Event_ID="none")),
    404: of_jobs(lambda path, client, *_: ask(client, path, names=NO_NAMES)),
    406: of_jobs(lambda path, client, *_: ask(client, path, Accept="text/html")),
    409: conflict,
    410: lambda path, client, *_: ask(client, path, names={"capture": OVER}),
    412: lambda path, client, *_: ask(client, path, If_Match="*"),
    413: too_large,
    415: lambda path, client, *_: ask(client, path, Content_Encoding="br"),
    422: wrong,
    429: crowded,
    501: without_the_extra,
    503: unavailable,
    504: late,
    507: on_a_disk_that_is(errno.ENOSPC),
}


@pytest.fixture
def provoke(make_app):
    def run(path, way, **options):
        app, engine, batcher = make_app(max_body_bytes=4096, max_checkpoint_bytes=4096, **options)
        app.state.captures.add(make_capture(KEPT.name, expires=KEPT.expires, length=300))
        answers = []

        async def conversation(client):
            answers.append(await way(path, client, app, engine, batcher))

        talk(app, conversation)
        return answers[0]

    return run


def test_every_route_is_here(make_app):
    app, *_ = make_app()
    assert {route.path for route in app.routes} == {*PATHS, *PAGES}


@pytest.mark.parametrize("path", sorted(PATHS))
def test_what_may_happen_is_documented(make_app, path):
    app, *_ = make_app()
    for method, operation in app.openapi()["paths"][path].items():
        statuses = ROUTES[path] if path in ROUTES else ROUTES[f"{method.upper()} {path}"]
        assert {int(status) for status in operation["responses"].keys() - ANYWHERE} == statuses
        for status in statuses:
            (media_type,) = operation["responses"][str(status)]["content"]
            assert media_type == "application/problem+json"


@pytest.mark.parametrize(("path", "status"), [(path, status) for path in ROUTES for status in sorted(ROUTES[path])])
def test_what_is_documented_may_happen(provoke, path, status):
    small = {"max_response_bytes": 1024} if status == 413 else {}
    response = provoke(path, WAYS[status], loaded=status != 503, **small)
    detail = check_problem(response, status)
    assert response.json()["error"] == detail
    assert detail
    if status in (429, 503):
        assert 1 <= int(response.headers["Retry-After"]) <= 60


@pytest.mark.parametrize("path", [path for path in ROUTES if VERSION in path])
@pytest.mark.parametrize("version", ["2", "0", "x", "01", "9" * 300])
def test_versions_that_are_not_served(provoke, path, version):
    response = provoke(path, lambda path, client, *_: ask(client, path, names={"version": version}))
    check_problem(response, 404)
    assert [fault["field"] for fault in response.json()["errors"]] == ["version"]


@pytest.mark.parametrize("path", sorted({*PATHS, *PAGES}))
def test_methods_that_are_not_allowed(provoke, path):
    url = path.format(**NAMES)
    response = provoke(path, lambda path, client, *_: client.patch(url))
    detail = check_problem(response, 405)
    assert response.json()["error"] == detail
    allowed = {method.strip() for method in response.headers["Allow"].split(",")}
    assert allowed <= {"GET", "HEAD", "POST", "PUT", "DELETE"}
    assert ("POST" in allowed) == (is_posted(path) or f"POST {path}" in ROUTES)
    several = {route.split()[0] for route in ROUTES if route.endswith(f" {path}")}
    assert several <= allowed


@pytest.mark.parametrize("path", sorted({*PATHS, "/nothing"}))
def test_routes_that_are_none(provoke, path):
    url = f"{path.format(**NAMES)}/and/even/more"
    check_problem(provoke(path, lambda path, client, *_: client.get(url)), 404)
