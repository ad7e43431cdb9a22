"""A service follows its repository, and clients of the Open Inference Protocol change what it serves."""

import asyncio
import json
import threading
import time

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from attnserve.service.engine import Engine

pytestmark = pytest.mark.http

LOST = f"""
from {Engine.__module__} import Engine
run = Engine.run
def fail(self, jobs):
    if any(13 in job.sequence for job in jobs):
        raise RuntimeError("CUDA failure 719")
    return run(self, jobs)
Engine.run = fail
Engine.is_sound = lambda self: False
"""


@pytest.fixture(scope="module")
def repository(copy_bundle, tmp_path_factory):
    """Versions 1, 2 and 3 of `tiny`, of which 3 is damaged, and `other`."""
    folder = tmp_path_factory.mktemp("repository")
    for version in ("tiny/1", "tiny/2", "tiny/3", "other/1"):
        copy_bundle(folder / version)
    with (folder / "tiny" / "3" / "model.onnx").open("ab") as model:
        model.write(b"\0")
    (folder / "tiny" / "aliases.json").write_text('{"active": 1, "stable": 1}')
    return folder


@pytest.fixture(scope="module")
def served(repository, start_server):
    with start_server(repository, "--poll-seconds", "0.1") as served:
        yield served
    assert served.process.returncode == 0
    assert "Traceback" not in served.log.read_text()


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.url.removeprefix("http://"), network_timeout=60) as connected:
        yield connected
        put_back(served)


def put_back(served):
    for model in ("tiny", "other"):
        body = {"parameters": {"version": 1}}
        assert served.client.post(f"/v2/repository/models/{model}/load", json=body).status_code == 200


def tokens(module=triton):
    made = module.InferInput("tokens", [1, 3], "INT64")
    made.set_data_from_numpy(np.array([[1, 2, 3]]))
    return made


def load(served, version, model="tiny"):
    return served.client.post(f"/v2/repository/models/{model}/load", json={"parameters": {"version": version}})


def states(rows):
    return {(row["name"], row["version"]): row["state"] for row in rows}


def wait_until(condition):
    """For what a service does by itself."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen")


def test_index(client, served):
    rows = client.get_model_repository_index()
    ready = {("tiny", "1"), ("other", "1")}
    versions = {("tiny", "1"), ("tiny", "2"), ("tiny", "3"), ("other", "1")}
    assert states(rows) == {row: "READY" if row in ready else "UNAVAILABLE" for row in versions}
    assert {row["reason"] for row in rows if row["state"] == "UNAVAILABLE"} == {"not the active version"}
    found = served.client.post("/v2/repository/index", json={"ready": True}).json()
    assert set(states(found)) == ready


def test_load_and_unload(client, repository):
    assert client.infer("tiny", [tokens()]).get_response()["model_version"] == "1"
    client.unload_model("tiny")
    assert not client.is_model_ready("tiny")
    assert json.loads((repository / "tiny" / "aliases.json").read_text()) == {"active": None, "stable": 1}
    with pytest.raises(InferenceServerException, match="tiny is unloaded"):
        client.infer("tiny", [tokens()])
    (reason,) = {row["reason"] for row in client.get_model_repository_index() if row["name"] == "tiny"}
    assert reason == "is unloaded"
    # Others have nothing to do with it.
    assert client.is_model_ready("other")
    client.unload_model("tiny", unload_dependents=True)


def test_load_another_version(client, served, repository):
    answer = load(served, "2")
    assert answer.json() == {"name": "tiny", "version": "2", "state": "READY"}
    assert client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("tiny", "1")
    assert client.infer("tiny", [tokens()], model_version="2").get_response()["model_version"] == "2"
    assert json.loads((repository / "tiny" / "aliases.json").read_text()) == {"active": 2, "stable": 1}


def test_load_what_cannot_be_served(client, served, repository):
    # The newest is damaged.
    with pytest.raises(
        InferenceServerException, match=r"tiny version 3 cannot be served: tiny/3/model\.onnx"
    ) as caught:
        client.load_model("tiny")
    assert caught.value.status() == "409"
    assert client.infer("tiny", [tokens()]).get_response()["model_version"] == "1"
    assert json.loads((repository / "tiny" / "aliases.json").read_text())["active"] == 1


def test_load_what_is_not_there(client, served):
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="model: expected one of other, tiny, got 'unknown'"):
            change("unknown")
    answer = load(served, 7)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (404, "version")


def test_models_of_clients_are_refused(client):
    with pytest.raises(InferenceServerException, match=r"parameters\.config: this server loads bundles"):
        client.load_model("tiny", config="{}")
    with pytest.raises(InferenceServerException, match=r"parameters\."):
        client.load_model("tiny", config="{}", files={"file:1/model.onnx": b"\0"})


@pytest.mark.parametrize("version", ["0", "01", "1.0", "latest", "", True, 1.0, 0, -1, [], {}, "9" * 400])
def test_versions_that_are_none(client, served, version):
    answer = load(served, version)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "parameters.version")


def test_examples_of_requests_work(client, served):
    paths = served.client.get("/openapi.json").json()["paths"]
    for path, num_examples in {"load": 2, "unload": 1}.items():
        operation = paths[f"/v2/repository/models/{{model}}/{path}"]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        assert len(content["examples"]) == num_examples
        assert not operation["requestBody"]["required"]
        shown = operation["responses"]["200"]["content"]["application/json"]["example"]
        for example in content["examples"].values():
            answer = served.client.post(f"/v2/repository/models/other/{path}", json=example["value"])
            assert answer.status_code == 200, answer.text
            assert set(answer.json()) == set(shown)


def test_statistics(client, served):
    put_back(served)
    load(served, 2)
    for _ in range(3):
        client.infer("tiny", [tokens()])
    with pytest.raises(InferenceServerException):
        client.infer("tiny", [])
    served.post("predict", {"sequences": [[1], [2]]})

    # A request is counted when its answer has been sent.
    def count():
        return client.get_inference_statistics("tiny")["model_stats"][0]["inference_stats"]["success"]["count"]

    wait_until(lambda: count() == 4)
    (row,) = client.get_inference_statistics("tiny")["model_stats"]
    assert row == client.get_inference_statistics("tiny", "2")["model_stats"][0]
    assert (row["name"], row["version"], row["inference_count"], row["execution_count"]) == ("tiny", "2", 5, 4)
    assert row["inference_stats"]["fail"]["count"] == 1
    assert row["inference_stats"]["compute_infer"]["ns"] > 0
    assert [batch["batch_size"] for batch in row["batch_stats"]] == [1, 2]
    assert abs(row["last_inference"] / 1000 - time.time()) < 600
    everything = client.get_inference_statistics()["model_stats"]
    assert {row["name"] for row in everything} == {"tiny", "other"}
    with pytest.raises(InferenceServerException, match="tiny serves version 2, got 1"):
        client.get_inference_statistics("tiny", "1")


def test_asyncio_client(client, served):
    async def talk():
        async with triton_aio.InferenceServerClient(served.url.removeprefix("http://")) as connected:
            await connected.unload_model("tiny")
            assert not await connected.is_model_ready("tiny")
            with pytest.raises(InferenceServerException, match="cannot be served"):
                await connected.load_model("tiny")
            assert load(served, 2).status_code == 200
            answer = await connected.infer("tiny", [tokens(triton_aio)])
            assert answer.get_response()["model_version"] == "2"
            (row,) = (await connected.get_inference_statistics("tiny"))["model_stats"]
            assert row["inference_count"] == 1
            assert states(await connected.get_model_repository_index())["tiny", "2"] == "READY"

    asyncio.run(talk())


def test_files_alone_are_followed(client, served, repository, copy_bundle):
    def version():
        return served.client.get("/v1/models/other").json().get("version")

    (repository / "other" / "aliases.json").unlink(missing_ok=True)
    copy_bundle(repository / "other" / ".tmp-2").rename(repository / "other" / "2")
    wait_until(lambda: version() == 2)
    (repository / "other" / "aliases.json").write_text('{"active": 1}')
    wait_until(lambda: version() == 1)
    (repository / "other" / "aliases.json").write_text('{"active": null}')
    wait_until(lambda: served.client.get("/v1/models/other").status_code == 503)
    assert "is unloaded" in served.client.get("/v1/models/other").json()["detail"]


def count_threads(served):
    with open(f"/proc/{served.process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Threads:"))


def test_nobody_is_dropped_while_versions_change(client, served):
    answers, is_over = [], threading.Event()

    def ask():
        with httpx.Client(base_url=served.url, timeout=60) as connected:
            while not is_over.is_set():
                answer = connected.post("/v1/models/tiny/predict", json={"sequences": [[1, 2, 3], [4]]})
                answers.append((answer.status_code, answer.json().get("version")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 1, 2, 1, 2):
            before = len(answers)
            assert load(served, version).status_code == 200
            wait_until(lambda before=before: len(answers) > before + 8)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} == {1, 2}
    put_back(served)
    few = count_threads(served)
    for version in (2, 1) * 4:
        assert load(served, version).status_code == 200
    # Workers of the old ones have ended.
    wait_until(lambda: count_threads(served) <= few + 2)


def test_a_device_that_is_lost_ends_the_service(bundles, start_server):
    with start_server(bundles, prelude=LOST) as served:
        assert served.ask("predict", {"sequences": [[1]]})
        answer = served.post("predict", {"sequences": [[13]]})
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the device is lost, and the service about to end"
        assert served.process.wait(timeout=30) == 70
    assert "does not answer golden rightly" in served.log.read_text()
