"""Traces of a real service, as a collector gets them, and what happens where there is none."""

import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `tracing`")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra `tracing`")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import free_port

pytestmark = pytest.mark.http

PREDICT = "POST /v1/models/{model}/predict"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067cc0cc902c7"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
STAGES = ["parse", "queue", "compute", "render"]
# All there is: whatever is added is either here or a leak.
OF_A_REQUEST = {
    "http.request.method",
    "http.route",
    "http.response.status_code",
    "attnserve.model",
    "attnserve.version",
    "attnserve.request_id",
}
OF_A_STAGE = {"attnserve.batch_sequences", "attnserve.steps", "attnserve.busy_ms"}


class Collector:
    """Keeps what is sent to it."""

    def __init__(self):
        self.requests = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests.append((self.path, dict(self.headers.items()), body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def resources(self):
        for path, _, body in self.requests:
            assert path == "/v1/traces"
            yield from ExportTraceServiceRequest.FromString(body).resource_spans

    @property
    def spans(self):
        return [span for resource in self.resources for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def collector():
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch):
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED", "OTEL_BSP_SCHEDULE_DELAY"):
        monkeypatch.delenv(name, raising=False)


def until(condition):
    """Wait for it, for a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def attributes(span):
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in span.attributes}


def test_a_prediction_is_a_trace_with_its_stages_under_its_caller(bundles, start_server, collector, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token")
    with start_server(bundles, "--otlp-endpoint", collector.url) as served:
        headers = {**CALLER, "tracestate": "vendor=1", "X-Request-Id": "mine"}
        assert served.post("predict", {"sequences": [[1, 2], [3]]}, headers=headers).status_code == 200
        assert served.client.get("/v1/models/tiny").status_code == 200
    # Those of the last seconds were sent at the end.
    assert served.process.returncode == 0
    spans = collector.spans
    assert {span.name for span in spans if span.kind == span.SPAN_KIND_SERVER} == {PREDICT, "GET /v1/models/{model}"}
    (whole,) = [span for span in spans if span.name == PREDICT]
    assert whole.trace_id.hex() == TRACE
    assert whole.parent_span_id.hex() == PARENT
    assert whole.trace_state == "vendor=1"
    assert attributes(whole) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}/predict",
        "http.response.status_code": 200,
        "attnserve.model": "tiny",
        "attnserve.version": 1,
        "attnserve.request_id": "mine",
    }
    stages = [span for span in spans if span.parent_span_id == whole.span_id]
    stages.sort(key=lambda span: span.end_time_unix_nano)
    assert [span.name for span in stages] == STAGES
    assert all(span.trace_id == whole.trace_id for span in stages)
    assert whole.start_time_unix_nano <= stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= whole.end_time_unix_nano
    for first, second in pairwise(stages):
        assert first.start_time_unix_nano <= first.end_time_unix_nano <= second.start_time_unix_nano
    assert attributes(stages[STAGES.index("compute")])["attnserve.batch_sequences"] in (1, 2)
    for resource in collector.resources:
        about = attributes(resource.resource)
        assert about["service.name"] == "attnserve"
        assert about["deployment.environment.name"] == "test"
    assert {headers["authorization"] for _, headers, _ in collector.requests} == {"Bearer token"}
    assert f"trace {TRACE}" in served.log.read_text()


def test_nothing_that_was_sent_is_in_a_trace(bundles, start_server, collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    # FastAPI's own spans, metrics and logs, which do hold what was sent.
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    with start_server(bundles, "--otlp-endpoint", collector.url, "--log-level", "debug") as served:
        private = {"User-Agent": "classified", "Cookie": "classified=1", "X-Forwarded-For": "203.0.113.77"}
        served.ask("predict", {"sequences": [[19, 17, 19, 17, 19, 17]]}, headers=private)
        assert served.post("predict", {"sequences": [["classified"]]}, headers=private).status_code == 422
        assert served.post("predict", {"sequences": [[1]]}, model="classified").status_code == 404
        assert served.post("predict?q=classified", b"[classified").status_code == 400
        assert served.client.get("/classified/path?token=classified", headers=private).status_code == 404
        for malformed in ({"traceparent": "classified"}, {**CALLER, "tracestate": "classified classified"}):
            assert served.client.get("/v1/models", headers=malformed).status_code == 200
        events = {"sequences": [[19, 17, 19, 17]], "continue": 3}
        streamed = served.post("predict", events, headers={"Accept": "text/event-stream"})
        assert "event: done" in streamed.text
        assert served.ask("predict", {**events, "continue": 2})["continuations"]
        # Without being told to stop: by itself, a tenth of a second later.
        until(lambda: sum(span.kind == span.SPAN_KIND_SERVER for span in collector.spans) >= 9)
    by_name = [attributes(span) for span in collector.spans if span.name in ("queue", "compute")]
    assert sorted(found.get("attnserve.steps", 1) for found in by_name) == [1, 1, 2, 2, 3, 3]
    payload = b"".join(body for _, _, body in collector.requests)
    for word in (b"classified", b"203.0.113.77", b"19, 17", b"19,17", b"\x13\x11\x13\x11"):
        assert word not in payload
    assert "classified" not in served.log.read_text()
    for span in collector.spans:
        is_request = span.kind == span.SPAN_KIND_SERVER
        assert set(attributes(span)) <= (OF_A_REQUEST if is_request else OF_A_STAGE)
        assert is_request or span.name in STAGES
        assert (len(span.events), len(span.links), span.status.message) == (0, 0, "")


def complaints(served):
    """Lines in the log that are about no request and no good news."""
    lines = served.log.read_text().splitlines()
    return [line for line in lines if "attnserve.access" not in line and " INFO " not in line]


def test_a_collector_that_is_gone_hurts_nobody(bundles, start_server, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    # Fewer than there will be while the exporter tries again: what is too much is thrown away.
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with start_server(bundles, "--otlp-endpoint", f"http://127.0.0.1:{free_port()}") as served:

        def ask():
            served.ask("predict", {"sequences": [[1]]}, headers=CALLER)
            return served.log.read_text()

        until(lambda: "traces are lost" in ask())
        for _ in range(20):
            ask()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=30) == 0
    (first, *others) = complaints(served)
    assert "traces are lost until" in first
    assert all("were not delivered" in line for line in others)


def test_a_collector_that_says_nothing_does_not_hold_up_the_end(bundles, start_server, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with start_server(bundles, "--otlp-endpoint", url) as served:
            served.ask("predict", {"sequences": [[1]]})
            with listener.accept()[0]:
                # Traces are on their way, and will be for ten minutes.
                served.ask("predict", {"sequences": [[1]]})
                served.process.send_signal(signal.SIGTERM)
                assert served.process.wait(timeout=30) == 0
    (only,) = complaints(served)
    assert "the last traces were not delivered within 3 s" in only


def test_without_a_collector_there_is_no_trace(server):
    assert server.post("predict", {"sequences": [[1]]}, headers=CALLER).status_code == 200
    assert TRACE not in server.log.read_text()
