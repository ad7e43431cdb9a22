"""Which models there are, what is known of them, and how a service starts, refuses to start and stops."""

import json
import resource
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from attnserve.cli import main

pytestmark = pytest.mark.http

# As on a machine where they are not installed: the import system itself says no.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxscript", "jaxtyping", "tqdm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_list_of_models(server):
    (model,) = server.client.get("/v1/models").json()["models"]
    assert model == {
        "name": "tiny",
        "version": 1,
        "versions": [1],
        "ready": True,
        "task": "next_token",
        "variants": ["dot_product", "elliptical", "expressive"],
        "num_layers": 3,
        "num_heads": 2,
    }


def test_a_model(server, bundles):
    manifest = json.loads((bundles / "tiny" / "1" / "manifest.json").read_text())
    model = server.client.get("/v1/models/tiny").json()
    assert model["card"] == {"purpose": "tests"}
    assert model["labels"] == list("abcdefghijklmnopqrst")
    assert model["limits"] == {"max_length": 320}
    assert (model["device"], model["kernels"]) == ("cpu", "off")
    for name in ("causal", "vocabulary_size", "layers", "provenance", "certificate"):
        assert model[name] == manifest[name]
    assert model["golden"]["logits"] <= manifest["certificate"]["logits"]["allowed"]
    assert model["golden"]["maps"] <= manifest["certificate"]["maps"]["allowed"]
    assert (model["tuning"]["num_engines"], model["tuning"]["num_threads"]) == (1, 1)
    assert model["tuning"]["source"] in ("measured", "remembered")
    assert all(value >= 0 for value in model["tuning"]["cost"].values())
    assert server.client.get("/v1/models/tiny/versions/1").json() == model


def test_health(server):
    assert server.client.get("/healthz").json() == {"status": "alive"}
    assert server.client.get("/readyz").json() == {"status": "ready"}


@pytest.fixture(scope="module")
def motley(copy_bundle, tmp_path_factory, start_server):
    """A service without torch, over a repository in which most things are broken, with tight limits."""
    repository = tmp_path_factory.mktemp("motley")
    for version in (1, 2, 10):
        copy_bundle(repository / "newest" / str(version))
    for version in (1, 2):
        copy_bundle(repository / "aliased" / str(version))
    (repository / "aliased" / "aliases.json").write_text('{"active": 1}')
    copy_bundle(repository / "misaliased" / "1")
    (repository / "misaliased" / "aliases.json").write_text('{"active": true}')
    with (copy_bundle(repository / "damaged" / "1") / "model.onnx").open("ab") as model:
        model.write(b"\0")
    (copy_bundle(repository / "incomplete" / "1") / "golden.npz").unlink()
    (copy_bundle(repository / "malformed" / "1") / "manifest.json").write_text("{")
    edit(copy_bundle(repository / "newer" / "1"), format_version=2)
    edit(copy_bundle(repository / "mislabelled" / "1"), labels=["a", "b"])
    edit(copy_bundle(repository / "unspeakable" / "1"), card={"number": 2**70})
    edit(copy_bundle(repository / "lying" / "1"), outputs=[], layers=[])
    edit(copy_bundle(repository / "nameless" / "1"), labels=None)
    copy_bundle(repository / ".tmp-1234" / "1")
    copy_bundle(repository / "half-made" / ".tmp-5678")
    (repository / "no-bundle").mkdir()
    (repository / "README.txt").write_text("hello")
    limits = ("--max-body-bytes", "65536", "--max-queue", "16", "--max-pending-bytes", "1000000")
    with start_server(repository, *limits, prelude=BLOCKED) as served:
        yield served
    assert served.process.returncode == 0


def edit(folder, **fields):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_good_models_serve_beside_broken_ones_and_without_torch(motley):
    for name in ("newest", "aliased", "nameless"):
        answer = motley.ask("attention", {"sequences": [[1, 2, 3]]}, model=name)
        assert (answer["model"], len(answer["diagnostics"])) == (name, 6)


def test_the_active_version_else_the_newest_is_served(motley):
    newest, aliased = (motley.client.get(f"/v1/models/{name}").json() for name in ("newest", "aliased"))
    assert (newest["version"], newest["versions"]) == (10, [1, 2, 10])
    assert (aliased["version"], aliased["versions"]) == (1, [1, 2])
    refused = motley.post("versions/2/predict", {"sequences": [[1]]}, model="aliased")
    assert refused.status_code == 404
    assert refused.json()["errors"] == [{"field": "version", "message": "aliased serves version 1, got 2"}]


def test_what_cannot_be_served_says_why(motley):
    listed = {model["name"]: model for model in motley.client.get("/v1/models").json()["models"]}
    expected = {
        "damaged": "damaged/1/model.onnx: expected sha256",
        "incomplete": "incomplete/1/golden.npz: listed in the manifest, but missing",
        "malformed": "malformed/1/manifest.json: ",
        "newer": "newer/1/manifest.json: format_version: this release reads up to 1, got 2; upgrade attnserve",
        "mislabelled": "labels: expected 20 (vocabulary_size), got 2",
        "misaliased": "misaliased/aliases.json: active: expected null or one of [1], got True",
        "unspeakable": "manifest: cannot be written as JSON",
        "lying": "cannot be served",
    }
    assert set(listed) == {*expected, "newest", "aliased", "nameless"}
    for name, reason in expected.items():
        assert not listed[name]["ready"]
        assert reason in listed[name]["reason"]
        response = motley.post("predict", {"sequences": [[1]]}, model=name)
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert reason in response.json()["detail"]
        assert motley.client.get(f"/v1/models/{name}").status_code == 503
        version = "" if name == "misaliased" else "version 1 "
        assert f"{name} {version}cannot be served" in motley.log.read_text()
    # Whoever asks without a key learns no name.
    assert motley.client.get("/readyz").json() == {"status": "ready"}


def test_labels_are_for_models_that_have_them(motley):
    answer = motley.ask("predict", {"sequences": [[1]]}, model="nameless")
    assert {entry["label"] for entry in answer["predictions"][0]["top"][0]} == {None}
    response = motley.post("predict", {"sequences": [["a"]]}, model="nameless")
    assert response.status_code == 422
    assert "expected an integer id from 0 to 19, got the string 'a'" in response.json()["detail"]


# Which needs nothing but queries and keys.
SINK = {"diagnostics": ["sink"]}


def test_limits_are_settings(motley):
    body = motley.post("predict", b" " * 65_537, model="newest")
    queue = motley.post("predict", {"sequences": [[1]] * 17}, model="newest")
    # 16 sequences of 320 steps: 3 layers x 2 heads x (query + key) x 8 channels x 4 bytes are 384 bytes a step.
    pending = motley.post("attention", {"sequences": [[1] * 320] * 16, **SINK}, model="newest")
    for response, field in ((body, "body"), (queue, "sequences"), (pending, "sequences")):
        assert response.status_code == 413
        assert response.json()["errors"][0]["field"] == field
    assert motley.post("attention", {"sequences": [[1] * 320] * 6, **SINK}, model="newest").status_code == 200


def run(*arguments, timeout=60):
    command = (sys.executable, "-m", "attnserve", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_an_unknown_repository(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nothing")]) == 1
    expected = f"attnserve: repository: expected a folder of bundles, got {tmp_path / 'nothing'}\n"
    assert capsys.readouterr().err == expected


def test_a_taken_port(bundles):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", str(bundles), "--port", str(port), "--log-level", "warning", "--tuning-seconds", "0.1")
    assert done.returncode == 1
    expected = (
        f"--port (ATTNSERVE_PORT): expected one that is free and may be taken, got {port}: Address already in use"
    )
    assert done.stderr == f"attnserve: {expected}\n"


def test_no_gpu_is_no_silent_cpu(bundles):
    from attnserve.runtime import Runtime
    from attnserve.sessions import DeviceError

    try:
        Runtime(bundles / "tiny" / "1", device="cuda")
    except DeviceError:
        pass
    else:
        pytest.skip("this machine has a GPU that ONNX Runtime can use")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("serve", str(bundles), "--port", "0", "--device", "cuda", timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1
    # Before anything is loaded: whoever starts it waits for an answer, ten seconds at most. Of CPU time, because the
    # machine may be busy.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert "golden" not in done.stderr
    assert "device: expected a usable CUDA device, got none" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_repository_is_alive_but_not_ready(tmp_path, start_server):
    with start_server(tmp_path, ready=False) as served:
        while served.client.get("/readyz").json()["detail"] == "models are being loaded":
            pass
        response = served.client.get("/readyz")
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert response.json()["detail"] == "no model of the repository answers"
        assert served.client.get("/v1/models").json() == {"models": []}
        assert served.client.get("/v1/models/tiny").status_code == 404
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(timeout=30) == 0
    assert "KeyboardInterrupt" not in served.log.read_text()
    assert "holds no bundles" in served.log.read_text()


def test_a_client_that_never_ends_its_request_does_not_keep_the_service_alive(bundles, start_server):
    with start_server(bundles, "--max-drain-seconds", "1") as served:
        place = urlsplit(served.url)
        with socket.create_connection((place.hostname, place.port)) as idle:
            idle.sendall(b"POST /v1/models/tiny/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            served.client.get("/healthz")
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(timeout=30) == 0
    assert "Finished server process" in served.log.read_text()
