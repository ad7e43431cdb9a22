"""The gateway's rule for captures, in a real HAProxy: everything asked of a capture goes to who made it."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from attnserve.service.captures.identity import CaptureId, check_name
from tests.conftest import free_port
from tests.http.conftest import check_problem

pytestmark = [
    pytest.mark.http,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
RULES = (ROOT / "gateway" / "haproxy.cfg").read_text("utf-8")
PAGE = (ROOT / "docs" / "captures.md").read_text("utf-8")
# One of each kind.
PARTS = ("", "/attention?quantity=received", "/rows/0/0", "/thumbnails", "/tiles/0/0/0/0/0", "/qk/0/0")


@pytest.fixture
def start_gateway(tmp_path):
    """`with start_gateway([8001, 8002]) as client:`: our configuration, but for its addresses."""

    @contextlib.contextmanager
    def start(ports):
        port = free_port()
        servers = "\n    ".join(f"server service{number} 127.0.0.1:{one}" for number, one in enumerate(ports))
        rules = RULES
        for ours, theirs in (
            ("server-template service 32 service:8000", servers),
            (" resolvers docker init-addr none", ""),
            ("    bind :8000\n", f"    bind 127.0.0.1:{port}\n"),
            ("bind :8404", f"bind 127.0.0.1:{free_port()}"),
        ):
            assert ours in rules
            rules = rules.replace(ours, theirs)
        configuration = tmp_path / "haproxy.cfg"
        configuration.write_text(rules)
        process = subprocess.Popen(["haproxy", "-db", "-f", str(configuration)], stdout=subprocess.DEVNULL)
        try:
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=30) as client:
                yield client
        finally:
            process.terminate()
            process.wait()

    return start


class Echo(BaseHTTPRequestHandler):
    """Says who it is, and what its gateway called the capture."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"port": self.server.server_port, "name": self.headers["Capture-Id"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def echoes():
    """Ports of three servers."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Echo) for _ in range(3)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [server.server_port for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_names_are_made_by_the_gateway_and_spread(start_gateway, echoes):
    ports = set()
    with start_gateway(echoes) as gateway:
        for version in ("", "/versions/1"):
            for _ in range(20):
                # Whatever a client says.
                headers = {"Capture-Id": "chosen-by-the-client"}
                made = gateway.post(f"/v1/models/tiny{version}/captures", json={}, headers=headers).json()
                assert str(uuid.UUID(made["name"])) == check_name(made["name"])
                path = f"/v1/captures/{CaptureId(name=made['name'], expires=4_000_000_000)}"
                assert [gateway.get(f"{path}{part}").json() for part in PARTS] == [made] * len(PARTS)
                assert gateway.delete(path).json() == made
                ports.add(made["port"])
    assert ports == set(echoes)


def test_what_was_captured_is_found_again(bundles, start_server, start_gateway):
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(start_server(bundles)) for _ in range(2)]
        gateway = stack.enter_context(start_gateway([served.client.base_url.port for served in services]))
        made = []
        for _ in range(24):
            response = gateway.post("/v1/models/tiny/captures", json={"sequences": [[1, 2, 3]]})
            assert response.status_code == 201, response.text
            made.append(response.headers["Location"])
        for path in made:
            assert [gateway.get(f"{path}{part}").status_code for part in PARTS] == [200] * len(PARTS)
        # Behind it, one of them alone has it, and the other one knows that it was a capture.
        has_it = [[served.client.get(path).status_code for served in services] for path in made]
        assert {tuple(statuses) for statuses in has_it} == {(200, 410), (410, 200)}
        path, owner = made[0], has_it[0].index(200)
        assert gateway.delete(path).status_code == 204
        assert services[owner].client.get(path).status_code == 410
        # Of a replica that is gone nothing is left, and clients are told to capture again.
        services[0].process.send_signal(signal.SIGTERM)
        services[0].process.wait(timeout=30)
        for path, statuses in zip(made[1:], has_it[1:], strict=True):
            answer = gateway.get(path)
            if statuses[1] == 200:
                assert answer.status_code == 200
            else:
                assert "capture again" in check_problem(answer, 410)
        again = gateway.post("/v1/models/tiny/captures", json={"sequences": [[1, 2, 3]]})
        assert gateway.get(again.headers["Location"]).status_code == 200


def test_the_page_shows_the_rule_of_the_gateway():
    shown = re.findall(r"^```\n(acl .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
    rules = {" ".join(line.split()) for line in RULES.splitlines()}
    for line in shown.splitlines():
        assert not line or " ".join(line.split()) in rules
