"""What the spans of a request say, and how they hang together."""

import asyncio
import logging
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `tracing`")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra `tracing`")

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import attnserve
from attnserve.service import tracing as tracing_module
from attnserve.service.access import Access
from attnserve.service.metrics import Metrics
from attnserve.service.stages import Stages
from attnserve.service.statistics import Statistics
from attnserve.service.tracing import Tracing, _Exporter

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067cc0cc902c7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
ROUTE = "/v1/models/{model}/predict"


@pytest.fixture
def exporter(monkeypatch):
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    return InMemorySpanExporter()


def make(exporter, **options):
    return Tracing(SimpleSpanProcessor(exporter), **options)


def scope_of(*headers, method="POST", asked=True, stages=None):
    scope = {
        "type": "http",
        "method": method,
        "path": "/v1/models/tiny/predict",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "stages": Stages() if stages is None else stages,
    }
    if asked:
        scope["asked"] = SimpleNamespace(name="tiny", version=3, statistics=Statistics())
    return scope


def record(tracing, scope, *, route=ROUTE, status=200, begin=10.0, end=11.0):
    return tracing.record(scope, route=route, status=status, request_id="mine", begin=begin, end=end)


def test_a_request_is_a_span_with_what_may_be_known(exporter):
    trace_id = record(make(exporter), scope_of())
    (span,) = exporter.get_finished_spans()
    assert span.name == f"POST {ROUTE}"
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" == trace_id
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "attnserve.model": "tiny",
        "attnserve.version": 3,
        "attnserve.request_id": "mine",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_stages_of_many_steps_are_one_child(exporter):
    stages = Stages()
    for step in range(3000):
        stages.add("queue", 10 + step, 10.25 + step)
        stages.add("compute", 10.25 + step, 10.75 + step, batch_sequences=4)
    record(make(exporter), scope_of(stages=stages), end=4000.0)
    queue, compute, _ = exporter.get_finished_spans()
    assert (queue.name, compute.name) == ("queue", "compute")
    assert dict(queue.attributes) == {"attnserve.steps": 3000, "attnserve.busy_ms": 750_000.0}
    assert dict(compute.attributes) == {
        "attnserve.steps": 3000,
        "attnserve.busy_ms": 1_500_000.0,
        "attnserve.batch_sequences": 4,
    }
    assert round((compute.end_time - compute.start_time) / 1e9, 6) == 2999.5


def test_stages_are_its_children_at_their_times(exporter, monkeypatch):
    clocks = SimpleNamespace(time_ns=lambda: 1_700_000_000 * 10**9, monotonic_ns=lambda: 12 * 10**9)
    monkeypatch.setattr(tracing_module, "time", clocks)
    stages = Stages()
    stages.add("parse", 10.125, 10.25)
    stages.add("compute", 10.5, 10.75, batch_sequences=4)
    record(make(exporter), scope_of(stages=stages))
    parse, compute, whole = exporter.get_finished_spans()
    assert [span.name for span in (parse, compute)] == ["parse", "compute"]
    for child in (parse, compute):
        assert child.parent.span_id == whole.context.span_id
        assert child.context.trace_id == whole.context.trace_id
        assert child.kind is SpanKind.INTERNAL
    times = [(span.start_time - whole.start_time, span.end_time - whole.start_time) for span in (parse, compute, whole)]
    assert times == [(125_000_000, 250_000_000), (500_000_000, 750_000_000), (0, 1_000_000_000)]
    assert whole.start_time == 1_699_999_998 * 10**9
    assert (dict(parse.attributes), dict(compute.attributes)) == ({}, {"attnserve.batch_sequences": 4})


def test_the_caller_is_the_parent(exporter):
    trace_id = record(make(exporter), scope_of(("traceparent", SAMPLED), ("tracestate", "a=1"), ("tracestate", "b=2")))
    (span,) = exporter.get_finished_spans()
    assert trace_id == TRACE
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    assert dict(span.context.trace_state) == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    "parents",
    [
        ["secret"],
        [""],
        [SAMPLED[:-1]],
        [f"ff{SAMPLED[2:]}"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [SAMPLED.upper()],
        ["é" * 600],
        [SAMPLED, UNSAMPLED],
    ],
)
def test_a_malformed_parent_is_none(exporter, parents):
    trace_id = record(make(exporter), scope_of(*(("traceparent", parent) for parent in parents), ("tracestate", "a=1")))
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert not span.context.trace_state
    assert trace_id != TRACE


def test_who_began_a_trace_says_whether_it_is_recorded(exporter):
    never = make(exporter, ratio=0.0)
    stages = Stages()
    stages.add("parse", 10.0, 10.5)
    # Its id is in the log all the same: the caller may know it.
    assert record(never, scope_of(("traceparent", UNSAMPLED), stages=stages)) == TRACE
    assert len(record(never, scope_of())) == 32
    assert record(make(exporter, ratio=1.0), scope_of(("traceparent", UNSAMPLED))) == TRACE
    assert not exporter.get_finished_spans()
    record(never, scope_of(("traceparent", SAMPLED)))
    assert len(exporter.get_finished_spans()) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(200, "UNSET"), (422, "UNSET"), (499, "UNSET"), (500, "ERROR"), (503, "ERROR")]
)
def test_faults_of_the_service_are_errors(exporter, status, code):
    record(make(exporter), scope_of(), status=status)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code.name == code
    assert span.attributes["http.response.status_code"] == status


def test_what_nobody_knows_is_not_named(exporter):
    record(make(exporter), scope_of(method="SECRET", asked=False), route=None, status=404)
    (span,) = exporter.get_finished_spans()
    assert span.name == "_OTHER"
    assert set(span.attributes) == {"http.request.method", "http.response.status_code", "attnserve.request_id"}


def test_the_service_says_who_it_is(exporter):
    record(make(exporter), scope_of())
    (span,) = exporter.get_finished_spans()
    assert span.resource.attributes["service.name"] == "attnserve"
    assert span.resource.attributes["service.version"] == attnserve.__version__


def test_the_environment_knows_better(exporter, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=7")
    record(make(exporter), scope_of())
    (span,) = exporter.get_finished_spans()
    found = {name: span.resource.attributes[name] for name in ("service.name", "service.version")}
    assert found == {"service.name": "ours", "service.version": "7"}
    assert span.resource.attributes["deployment.environment.name"] == "test"


def test_a_disabled_sdk_has_no_trace(exporter, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert record(make(exporter), scope_of()) is None
    assert not exporter.get_finished_spans()


def pass_through(app, tracing, scope):
    """One request through `Access`."""
    access = Access(app, metrics=Metrics(), catalogue=SimpleNamespace(versions={"tiny": (3,)}), tracing=tracing)
    scope.pop("stages")

    async def send(_):
        pass

    asyncio.run(access(scope, None, send))


async def start(send, status=200):
    await send({"type": "http.response.start", "status": status, "headers": []})


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"])
def test_probes_leave_no_span(exporter, path, caplog):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path=path)
        await start(send)

    caplog.set_level(logging.DEBUG, "attnserve.access")
    pass_through(app, make(exporter), scope_of(asked=False))
    assert not exporter.get_finished_spans()
    assert not hasattr(caplog.records[-1], "trace_id")


def test_a_stream_is_over_when_it_ends(exporter):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path=ROUTE)
        await start(send)
        for more in (True, True, False):
            assert not exporter.get_finished_spans()
            await send({"type": "http.response.body", "body": b"x", "more_body": more})

    pass_through(app, make(exporter), scope_of())
    assert [span.name for span in exporter.get_finished_spans()] == [f"POST {ROUTE}"]


def test_a_bug_leaves_a_span(exporter):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path=ROUTE)
        raise RuntimeError("a secret")

    with pytest.raises(RuntimeError):
        pass_through(app, make(exporter), scope_of())
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 500
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())


def test_the_line_in_the_log_has_the_trace(exporter, caplog):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path=ROUTE)
        await start(send)

    caplog.set_level(logging.INFO, "attnserve.access")
    pass_through(app, make(exporter), scope_of(("traceparent", SAMPLED)))
    assert caplog.records[-1].trace_id == TRACE
    assert caplog.records[-1].getMessage().endswith(f" ms, trace {TRACE}")
    pass_through(app, None, scope_of(("traceparent", SAMPLED)))
    assert not hasattr(caplog.records[-1], "trace_id")
    assert caplog.records[-1].getMessage().endswith(" ms")


def test_a_collector_that_is_gone_is_mentioned_once(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    sdk_log = logging.getLogger(OTLPSpanExporter.__module__)
    # As they were: the exporter's own are for the whole process.
    monkeypatch.setattr(sdk_log, "filters", [])
    monkeypatch.setattr(sdk_log, "level", sdk_log.level)
    answers = iter(["fail", "fail", "good", "good", "fail"])

    def export(self, spans):
        if next(answers) == "good":
            return SpanExportResult.SUCCESS
        sdk_log.warning("refused")
        sdk_log.error("tried again")
        return SpanExportResult.FAILURE

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    exporter = _Exporter("http://127.0.0.1:1/v1/traces")
    for _ in range(5):
        exporter.export(())
    lost = "traces are lost until http://127.0.0.1:1/v1/traces takes them: refused"
    assert [record.getMessage() for record in caplog.records] == [
        lost,
        "http://127.0.0.1:1/v1/traces takes traces again",
        lost,
    ]
    exporter.shutdown()


def test_an_end_waits_only_so_long(monkeypatch, caplog):
    class Stuck(SpanExporter):
        def export(self, spans):
            return SpanExportResult.SUCCESS

        def shutdown(self):
            let_go.wait()

    let_go = threading.Event()
    monkeypatch.setattr(tracing_module, "FLUSH_SECONDS", 0.01)
    make(Stuck()).close()
    assert "were not delivered" in caplog.text
    let_go.set()


def test_an_end_sends_what_is_left(exporter, caplog):
    tracing = make(exporter)
    record(tracing, scope_of())
    tracing.close()
    assert len(exporter.get_finished_spans()) == 1
    assert not caplog.records
