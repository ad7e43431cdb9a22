"""Metrics for Prometheus: seconds as histograms, so that percentiles can be had across replicas.

Names and labels are part of the API (docs/metrics.md). No input is in them, and of the client's words only the name of
a model that exists: a label that anyone can invent would fill the memory.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from attnserve.service.captures.store import REASONS, CaptureStore
from attnserve.service.catalogue import Catalogue
from attnserve.service.histogram import Histogram
from attnserve.service.live_heads import HeadMetrics
from attnserve.service.observer import BatchRun, Observer

# A series more for every one there is, of when it began: nobody asks.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A tiny model answers in half a millisecond, a long sequence on one core in a minute.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
ROWS = tuple(4**power for power in range(10))
RATIOS = (1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 25)
MODEL = ("model", "version")


class Metrics:
    """Everything counted in one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._histogram(
            "request", "From the head of a request to the end of its answer.", ("route", "model", "status")
        )
        self._rejected = Counter(
            "inference_rejected",
            "Requests answered with a problem.",
            ("status", "reason"),
            registry=self.registry,
        )
        self._queue = self._histogram("queue", "A sequence in the queue.", MODEL)
        self._pack = self._histogram("pack", "Packing a batch.", MODEL)
        self._compute = self._histogram("compute", "A batch in ONNX Runtime.", MODEL)
        self._render = self._histogram("render", "Making an answer, attention included.", MODEL)
        self._sequences = self._sizes("inference_batch_sequences", "Sequences in a batch.", SIZES)
        self._rows = self._sizes("inference_batch_tokens", "Steps in a batch, no padding among them.", ROWS)
        self._padding = self._sizes(
            "inference_padding_ratio", "Cells attention computes, divided by those of the sequences alone.", RATIOS
        )
        self._failed = Counter(
            "inference_failed_batches",
            "Batches that raised, and were retried one by one.",
            MODEL,
            registry=self.registry,
        )

    def show_models(self, catalogue: Catalogue) -> None:
        """Ask `catalogue` for its models whenever somebody looks."""
        self.registry.register(_Models(catalogue))
        self.registry.register(HeadMetrics(lambda: catalogue.models.values()))

    def show_captures(self, store: CaptureStore) -> None:
        """Ask `store` for its captures whenever somebody looks."""
        self.registry.register(_Captures(store))

    def observe_request(self, route: str, model: str, status: int, seconds: float) -> None:
        """An answer has been sent; `route` is the template, `model` empty if there is none of that name."""
        self._requests.labels(route, model, str(status))(seconds)

    def observe_rejected(self, status: int, reason: str) -> None:
        """A problem has been answered; `reason` is a word of ours, empty if no code of ours saw the request."""
        self._rejected.labels(str(status), reason).inc()

    def observer(self, model: str, version: int) -> Observer:
        """What an engine and its queue tell of their work."""
        labels = (model, str(version))
        return _ModelObserver(
            queue=self._queue.labels(*labels),
            pack=self._pack.labels(*labels),
            compute=self._compute.labels(*labels),
            render=self._render.labels(*labels),
            sequences=self._sequences.labels(*labels),
            rows=self._rows.labels(*labels),
            padding=self._padding.labels(*labels),
            failed=self._failed.labels(*labels).inc,
        )

    def render(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, description: str, labels: Iterable[str]) -> Histogram:
        return self._register(Histogram(f"inference_{name}_duration_seconds", description, tuple(labels), SECONDS))

    def _sizes(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return self._register(Histogram(name, description, MODEL, buckets))

    def _register(self, histogram: Histogram) -> Histogram:
        self.registry.register(histogram)
        return histogram


class _ModelObserver(Observer):
    def __init__(self, **report: Callable[..., None]) -> None:
        self._report = report

    def waited(self, seconds: float) -> None:
        self._report["queue"](seconds)

    def ran(self, batch: BatchRun) -> None:
        lengths = batch.lengths
        self._report["pack"](batch.pack_seconds)
        self._report["compute"](batch.compute_seconds)
        self._report["sequences"](len(lengths))
        self._report["rows"](sum(lengths))
        padded = len(lengths) * max(lengths) ** 2 / sum(length**2 for length in lengths)
        self._report["padding"](padded if batch.pads else 1.0)

    def rendered(self, seconds: float) -> None:
        self._report["render"](seconds)

    def failed(self) -> None:
        self._report["failed"]()


class _Captures(Collector):
    """What is kept of forward passes now, and what became of it."""

    def __init__(self, store: CaptureStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("captures", "Captures that are kept.", len(self._store))
        yield GaugeMetricFamily("capture_bytes", "Memory that captures take.", self._store.num_bytes)
        yield CounterMetricFamily("captures_taken", "Captures that were taken.", self._store.num_taken)
        lost = CounterMetricFamily("captures_lost", "Captures that are no longer kept.", labels=("reason",))
        for reason in REASONS:
            lost.add_metric((reason,), self._store.lost[reason])
        yield lost


class _Models(Collector):
    """What is true of the models now."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("model_ready", "Whether a model of the repository answers.", labels=("model",))
        pending = GaugeMetricFamily("inference_pending_sequences", "Sequences in the queue.", labels=MODEL)
        failed = GaugeMetricFamily("model_failed", "Whether the version to serve cannot be served.", labels=("model",))
        names = ("model", "version", "device", "provider", "kernels", "precision", "task", "variants")
        info = GaugeMetricFamily("model_info", "What serves a model; always 1.", labels=names)
        models, failures = self._catalogue.models, self._catalogue.failures.by_name
        for name in self._catalogue.versions:
            model = models.get(name)
            failed.add_metric((name,), float(name in failures))
            ready.add_metric((name,), float(model is not None and model.batcher.is_open))
            if model is None:
                continue
            version, manifest = str(model.version), model.manifest
            pending.add_metric((name, version), model.batcher.num_waiting)
            variants = ",".join(sorted({layer.variant for layer in manifest.layers}))
            precision = manifest.certificate.precision
            engine, kernels = model.engine, model.kernels
            info.add_metric(
                (name, version, engine.device, engine.provider, kernels, precision, manifest.task, variants), 1.0
            )
        yield from (ready, failed, pending, info)
