"""Tracing: a span per request for OpenTelemetry, and in it one per stage. Needs the extra `tracing`.

All spans of a request are made when it is over, from what was noted on its way. They say what `Access` may say in the
log: which route, which model, how it ended. Never what was sent.
"""

import logging
import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

import attnserve
from attnserve.service.model import ServedModel
from attnserve.service.stages import Stage, Stages

log = logging.getLogger(__name__)

# What the last spans may take to leave; Docker waits 10 s for everything.
FLUSH_SECONDS = 3.0
# Others are a client's invention, and have this name in OpenTelemetry.
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
OTHER_METHOD = "_OTHER"
PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """The spans of one service.

    Args:
        processor: takes spans that have ended.
        ratio: of traces that begin here; those that began elsewhere are recorded if their caller records them.
    """

    def __init__(self, processor: SpanProcessor, *, ratio: float = 1.0) -> None:
        own = Resource({SERVICE_NAME: "attnserve", SERVICE_VERSION: attnserve.__version__})
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio),
            # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
            resource=Resource.create().merge(own).merge(OTELResourceDetector().detect()),
            # `close` does that, and has a limit.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("attnserve", attnserve.__version__)

    def record(
        self, scope: Scope, *, route: str | None, status: int, request_id: str, begin: float, end: float
    ) -> str | None:
        """Make the spans of a request that is over.

        Args:
            scope: of the request.
            route: the template that matched, if one did.
            status: of the answer.
            request_id: as it was answered.
            begin: seconds of `time.monotonic`.
            end: the same.

        Returns:
            The trace's id, recorded or not; None if the SDK is disabled.
        """
        # Taken once, so that no clock that is set meanwhile comes between the spans of a request.
        offset = time.time_ns() - time.monotonic_ns()
        method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.response.status_code": status,
            "attnserve.request_id": request_id,
        }
        if route is not None:
            attributes["http.route"] = route
        asked: ServedModel | None = scope.get("asked")
        if asked is not None:
            attributes |= {"attnserve.model": asked.name, "attnserve.version": asked.version}
        span = self._tracer.start_span(
            method if route is None else f"{method} {route}",
            read_parent(scope),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=_to_epoch(begin, offset),
        )
        if span.is_recording():
            inside = set_span_in_context(span, Context())
            stages: Stages = scope["stages"]
            for stage in stages.all:
                start = _to_epoch(stage.begin, offset)
                child = self._tracer.start_span(stage.name, inside, attributes=_describe(stage), start_time=start)
                child.end(_to_epoch(stage.end, offset))
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            span.end(_to_epoch(end, offset))
        context = span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def close(self) -> None:
        """Send what is left, for so long and no longer: a collector that is gone must not keep the service."""
        # The SDK waits half a minute, and in between for a connection as long as that takes.
        flush = threading.Thread(target=self._provider.shutdown, name="tracing-flush", daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
        if flush.is_alive():
            log.warning("the last traces were not delivered within %g s and are lost", FLUSH_SECONDS)


def start_tracing(endpoint: str, ratio: float) -> Tracing:
    """Trace, and send to a collector from a thread of the SDK's.

    Args:
        endpoint: of the collector, without the `/v1/traces` that OTLP adds.
        ratio: of traces that begin here.
    """
    tracing = Tracing(BatchSpanProcessor(_Exporter(f"{endpoint.rstrip('/')}/v1/traces")), ratio=ratio)
    # Its warnings quote headers of clients, or come with every span while the collector is gone.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    return tracing


def read_parent(scope: Scope) -> Context:
    """The caller's span by the headers of W3C Trace Context; nobody's, if they are missing or malformed."""
    parents = [value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"]
    if len(parents) != 1:
        return Context()
    states = [value.decode("latin-1") for name, value in scope["headers"] if name == b"tracestate"]
    return PROPAGATOR.extract({"traceparent": parents, "tracestate": states}, Context())


class _Exporter(OTLPSpanExporter):
    """The SDK's, which complains at every try. This one says once that traces are lost, and once that they are not."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._url = url
        self._is_failing = False
        self._complaints: list[str] = []
        sdk_log = logging.getLogger(OTLPSpanExporter.__module__)
        sdk_log.setLevel(logging.WARNING)
        sdk_log.addFilter(self._keep)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send, and notice whether it went well."""
        self._complaints.clear()
        result = super().export(spans)
        was_failing, self._is_failing = self._is_failing, result is not SpanExportResult.SUCCESS
        if self._is_failing and not was_failing:
            # The first: later ones say no more than that it was tried again.
            reason = next(iter(self._complaints), "the SDK gave no reason")
            log.warning("traces are lost until %s takes them: %s", self._url, reason)
        elif was_failing and not self._is_failing:
            log.info("%s takes traces again", self._url)
        return result

    def _keep(self, record: logging.LogRecord) -> bool:
        self._complaints.append(record.getMessage())
        return False


def _describe(stage: Stage) -> dict[str, int | float]:
    """Attributes of a stage's span."""
    described: dict[str, int | float] = {}
    if stage.batch_sequences:
        described["attnserve.batch_sequences"] = stage.batch_sequences
    # Not a span each: a continuation may have thousands of steps, and the SDK's queue 2048 places.
    if stage.count > 1:
        described |= {"attnserve.steps": stage.count, "attnserve.busy_ms": round(1000 * stage.seconds, 3)}
    return described


def _to_epoch(seconds: float, offset: int) -> int:
    """Nanoseconds since 1970 from seconds of `time.monotonic`."""
    return round(seconds * 1e9) + offset
