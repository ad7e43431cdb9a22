"""Checkpoints over HTTP: real files to a real service, and everything that may come in between."""

import base64
import hashlib
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import Served
from tests.http.conftest import check_problem
from tests.http.test_errors import send

pytestmark = pytest.mark.http

WEIGHTS = "/v1/checkpoints/mine/model.safetensors"
LIMIT = 4 * 1024 * 1024


def folder_of(served: Served) -> Path:
    return served.log.with_name("checkpoints")


def list_left(served: Served) -> list[str]:
    """What is on the disk besides whole content."""
    folder = folder_of(served)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def wait_until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to pass within 30 s")


@pytest.fixture(scope="module")
def uploading(bundles, start_server):
    with start_server(bundles, "--max-checkpoint-bytes", str(LIMIT)) as served:
        yield served
        assert not list((folder_of(served) / ".tmp").iterdir())
    assert served.process.returncode == 0
    assert "Traceback" not in served.log.read_text()


@pytest.fixture
def served(uploading):
    """A service without checkpoints."""
    yield uploading
    for checkpoint in uploading.client.get("/v1/checkpoints").json()["checkpoints"]:
        assert uploading.client.delete(f"/v1/checkpoints/{checkpoint['name']}").status_code == 204


def begin(served: Served, head: str) -> socket.socket:
    """A connection on which the head of a request was sent."""
    place = urlsplit(served.url)
    connection = socket.create_connection((place.hostname, place.port), timeout=60)
    connection.sendall(f"{head}\r\nHost: x\r\n\r\n".encode())
    return connection


def read_head(connection: socket.socket) -> str:
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        assert piece, f"the connection was closed after {received!r}"
        received += piece
    return received.decode("latin-1")


def test_a_checkpoint_comes_and_is_whole(served, checkpoint):
    from attnserve.models import load_checkpoint

    hashes = {}
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        hashes[path.name] = hashlib.sha256(content).hexdigest()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        headers = {"Content-Digest": f"sha-256=:{digest}:"}
        response = served.client.put(f"/v1/checkpoints/tiny/{path.name}", content=content, headers=headers)
        assert response.status_code == 201, response.text
        assert response.headers["ETag"] == f'"{hashes[path.name]}"'
        assert response.headers["Location"] == f"/v1/checkpoints/tiny/{path.name}"
        assert response.json() == {
            "name": "tiny",
            "file": path.name,
            "sha256": hashes[path.name],
            "num_bytes": len(content),
        }
    shown = served.client.get("/v1/checkpoints/tiny").json()
    assert {file: stored["sha256"] for file, stored in shown["files"].items()} == hashes
    assert served.client.get("/v1/checkpoints").json() == {"checkpoints": [shown]}
    # A folder as any other, for commands on the same machine.
    assert load_checkpoint(folder_of(served) / "tiny").card == {"purpose": "tests"}


def test_a_file_is_replaced_and_goes(served):
    assert served.client.put(WEIGHTS, content=b"one").status_code == 201
    assert served.client.put(WEIGHTS, content=b"one").status_code == 200
    response = served.client.put(WEIGHTS, content=b"other")
    assert (response.status_code, response.json()["num_bytes"]) == (200, 5)
    head = served.client.head(WEIGHTS)
    assert (head.status_code, head.headers["ETag"]) == (200, response.headers["ETag"])
    assert (head.headers["Content-Length"], head.content) == ("5", b"")
    assert served.client.head(WEIGHTS.replace("model.safetensors", "card.json")).status_code == 404
    assert served.client.delete(WEIGHTS).status_code == 204
    assert (
        check_problem(served.client.delete(WEIGHTS), 404) == "file: expected one that mine has, got 'model.safetensors'"
    )
    assert check_problem(served.client.get("/v1/checkpoints/mine"), 404).startswith("name: expected one that was upl")


def test_conditions(served):
    tag = served.client.put(WEIGHTS, content=b"one").headers["ETag"]
    check_problem(served.client.put(WEIGHTS, content=b"two", headers={"If-None-Match": "*"}), 412)
    check_problem(served.client.put(WEIGHTS, content=b"two", headers={"If-Match": f'"{"0" * 64}"'}), 412)
    assert served.client.put(WEIGHTS, content=b"two", headers={"If-Match": tag}).status_code == 200
    check_problem(served.client.put(WEIGHTS, content=b"three", headers={"If-Match": tag}), 412)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/checkpoints/../config.json",
        "/v1/checkpoints/%2e%2e/config.json",
        "/v1/checkpoints/..%2f..%2fetc/config.json",
        "/v1/checkpoints/..%5c..%5cetc/config.json",
        "/v1/checkpoints/.blobs/config.json",
        "/v1/checkpoints/.tmp/config.json",
        "/v1/checkpoints/mine/..",
        "/v1/checkpoints/mine/%2e%2e%2fother%2fconfig.json",
        "/v1/checkpoints/mine/config.json%00",
        "/v1/checkpoints/mine%00/config.json",
        "/v1/checkpoints/mine/pytorch_model.bin",
        "/v1/checkpoints/mine/config.json/",
        "/v1/checkpoints//config.json",
        "/v1/checkpoints/%ff/config.json",
        "/v1/checkpoints/%20/config.json",
        "/v1/checkpoints/" + "x" * 129 + "/config.json",
    ],
)
def test_no_way_out(served, path):
    before = list_left(served)
    for method in ("PUT", "DELETE", "HEAD"):
        response = send(served, f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        assert response.status_code in ((404, 422) if method == "PUT" else (404,)), path
    assert list_left(served) == before


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (WEIGHTS, f"Content-Length: {LIMIT + 1}", 413),
        ("/v1/checkpoints/mine/config.json", f"Content-Length: {1 << 30}", 413),
        (WEIGHTS, "Content-Length: 7\r\nContent-Digest: md5", 400),
        (WEIGHTS, "Content-Length: 7\r\nContent-Encoding: gzip", 415),
        (WEIGHTS, "Content-Length: 7\r\nIf-Match: *", 412),
        ("/v1/checkpoints/mine/model.pt", "Content-Length: 7", 422),
        ("/v1/checkpoints/mine/model.pt/more", "Content-Length: 7", 404),
    ],
)
def test_who_asks_first_is_refused_without_sending(served, path, headers, status):
    with begin(served, f"PUT {path} HTTP/1.1\r\nExpect: 100-continue\r\n{headers}") as connection:
        head = read_head(connection)
        assert head.startswith(f"HTTP/1.1 {status} ")
        # Or what is sent all the same would be read as the next request.
        assert "\r\nconnection: close\r\n" in head.lower()


def test_who_asks_first_is_told_to_go_on_and_may_ask_again(served):
    with begin(served, f"PUT {WEIGHTS} HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 7") as connection:
        assert read_head(connection) == "HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"weights")
        head = read_head(connection)
        assert head.startswith("HTTP/1.1 201 ")
        assert "connection: close" not in head.lower()


def test_a_body_of_unknown_length_is_refused_while_it_is_read(served):
    def chunks():
        for _ in range(64):
            yield bytes(1024 * 1024)

    assert check_problem(served.client.put(WEIGHTS, content=chunks()), 413) == (
        f"body: expected at most {LIMIT} bytes, got more"
    )
    assert served.client.put(WEIGHTS, content=iter([bytes(LIMIT // 2)] * 2)).json()["num_bytes"] == LIMIT


def is_writing(served: Served) -> bool:
    temporary = folder_of(served) / ".tmp"
    return temporary.exists() and any(path.stat().st_size for path in temporary.iterdir())


def test_a_client_who_leaves_leaves_nothing(served):
    before = list_left(served)
    with begin(served, f"PUT {WEIGHTS} HTTP/1.1\r\nContent-Length: {LIMIT}") as connection:
        connection.sendall(bytes(LIMIT - 1))
        wait_until(lambda: is_writing(served))
    wait_until(lambda: list_left(served) == before)
    check_problem(served.client.get("/v1/checkpoints/mine"), 404)


def test_a_client_who_is_late_leaves_nothing(served):
    before = list_left(served)
    head = f"PUT {WEIGHTS} HTTP/1.1\r\nContent-Length: {LIMIT}\r\nTimeout-Ms: 300"
    with begin(served, head) as connection:
        connection.sendall(bytes(LIMIT - 1))
        assert read_head(connection).startswith("HTTP/1.1 504 ")
    assert list_left(served) == before


def test_many_at_once_are_all_whole(served):
    contents = [os.urandom(200_000) for _ in range(4)]

    def put(index: int) -> None:
        with httpx.Client(base_url=served.url, timeout=60) as client:
            for _ in range(5):
                # All of the same name: some file of them is the last one.
                path = f"/v1/checkpoints/contested/{('config.json', 'model.safetensors')[index % 2]}"
                assert client.put(path, content=contents[index]).status_code in (200, 201)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    hashes = {hashlib.sha256(content).hexdigest() for content in contents}
    files = served.client.get("/v1/checkpoints/contested").json()["files"]
    assert len(files) == 2
    assert {stored["sha256"] for stored in files.values()} <= hashes


def test_what_a_killed_service_was_reading_is_gone_when_the_next_one_runs(bundles, start_server, tmp_path):
    place = str(tmp_path / "checkpoints")
    temporary = tmp_path / "checkpoints" / ".tmp"
    head = f"PUT {WEIGHTS} HTTP/1.1\r\nContent-Length: {1 << 24}"
    with start_server(bundles, "--checkpoints", place) as served, begin(served, head) as connection:
        connection.sendall(bytes(1 << 22))
        wait_until(lambda: temporary.exists() and any(path.stat().st_size for path in temporary.iterdir()))
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
    assert len(list(temporary.iterdir())) == 1
    with start_server(bundles, "--checkpoints", place) as served:
        wait_until(lambda: not list(temporary.iterdir()))
        assert served.client.get("/v1/checkpoints").json() == {"checkpoints": []}


def test_a_service_that_is_told_to_stop_leaves_nothing(bundles, start_server):
    head = f"PUT {WEIGHTS} HTTP/1.1\r\nContent-Length: {1 << 24}"
    with start_server(bundles, "--max-drain-seconds", "1") as served, begin(served, head) as connection:
        connection.sendall(bytes(1 << 22))
        wait_until(lambda: is_writing(served))
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=30) == 0
    assert list_left(served) == []


# A disk for a mebibyte per file: the kernel refuses more, as a full one would.
SMALL_DISK = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 20}, {1 << 20}))"


def test_a_disk_that_is_full_is_507_and_nothing_is_left(bundles, start_server):
    with start_server(bundles, prelude=SMALL_DISK) as served:
        said = check_problem(served.client.put(WEIGHTS, content=bytes(1 << 23)), 507)
        assert said == "the disk of uploaded checkpoints is full: File too large"
        assert list_left(served) == []
        assert served.client.put(WEIGHTS, content=bytes(1 << 19)).status_code == 201


def test_a_place_that_cannot_be_written_stops_nobody(bundles, start_server, tmp_path):
    (tmp_path / "file").touch()
    with start_server(bundles, "--checkpoints", str(tmp_path / "file" / "checkpoints")) as served:
        detail = check_problem(served.client.put(WEIGHTS, content=b"weights"), 503)
        assert detail.startswith("uploaded checkpoints cannot be read or written: ")
        assert str(tmp_path) not in detail
        assert served.client.get("/v1/checkpoints").json() == {"checkpoints": []}
        assert served.post("predict", {"sequences": [[1]]}).status_code == 200
    assert str(tmp_path) in served.log.read_text()
    assert "Traceback" not in served.log.read_text()


def test_names_and_content_are_in_no_log(served):
    assert served.client.put("/v1/checkpoints/confidential/config.json", content=b"secret").status_code == 201
    assert served.client.get("/v1/checkpoints/confidential").status_code == 200
    text = served.log.read_text()
    assert "PUT /v1/checkpoints/{name}/{file} 201" in text
    assert "confidential" not in text + served.client.get("/metrics").text
