"""Metrics count what happened, under labels that nobody can make up."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnserve.service.captures.store import CaptureStore
from attnserve.service.live_heads import LiveHeads
from attnserve.service.metrics import Metrics
from attnserve.service.observer import BatchRun

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text("utf-8")


def value_of(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    manifest = SimpleNamespace(
        layers=[SimpleNamespace(variant="expressive"), SimpleNamespace(variant="dot_product")],
        certificate=SimpleNamespace(precision="float16"),
        task="next_token",
    )
    model = SimpleNamespace(
        version=3,
        manifest=manifest,
        batcher=SimpleNamespace(is_open=True, num_waiting=7),
        engine=SimpleNamespace(device="cpu", provider="CPUExecutionProvider"),
        kernels="on",
        name="here",
        live=LiveHeads(),
    )
    catalogue = SimpleNamespace(
        versions={"here": (1, 3), "broken": (1,), "unloaded": (1,)},
        models={"here": model},
        failures=SimpleNamespace(by_name={"broken": "damaged"}),
    )
    metrics.show_models(catalogue)  # type: ignore[arg-type]
    metrics.show_captures(CaptureStore(1000))
    return metrics


def test_a_batch_is_counted_once_with_its_padding(metrics: Metrics) -> None:
    observer = metrics.observer("here", 3)
    observer.ran(BatchRun(lengths=[4, 1, 1], pads=True, pack_seconds=0.001, compute_seconds=0.25))
    labels = {"model": "here", "version": "3"}
    assert value_of(metrics, "inference_batch_sequences_sum", **labels) == 3
    assert value_of(metrics, "inference_batch_tokens_sum", **labels) == 6
    # 3 x 4 x 4 cells for 16 + 1 + 1.
    assert value_of(metrics, "inference_padding_ratio_sum", **labels) == pytest.approx(48 / 18)
    assert value_of(metrics, "inference_pack_duration_seconds_sum", **labels) == 0.001
    assert value_of(metrics, "inference_compute_duration_seconds_sum", **labels) == 0.25
    assert value_of(metrics, "inference_batch_sequences_count", **labels) == 1


def test_kernels_compute_no_padding(metrics: Metrics) -> None:
    observer = metrics.observer("here", 3)
    observer.ran(BatchRun(lengths=[4, 1, 1], pads=False, pack_seconds=0.001, compute_seconds=0.25))
    assert value_of(metrics, "inference_padding_ratio_sum", model="here", version="3") == 1


def test_waiting_rendering_and_failing_are_counted(metrics: Metrics) -> None:
    observer = metrics.observer("here", 3)
    observer.waited(0.5)
    observer.rendered(0.125)
    observer.failed()
    labels = {"model": "here", "version": "3"}
    assert value_of(metrics, "inference_queue_duration_seconds_sum", **labels) == 0.5
    assert value_of(metrics, "inference_render_duration_seconds_sum", **labels) == 0.125
    assert value_of(metrics, "inference_failed_batches_total", **labels) == 1


def test_models_are_shown_as_they_are_now(metrics: Metrics) -> None:
    assert value_of(metrics, "model_ready", model="here") == 1
    assert value_of(metrics, "model_ready", model="broken") == 0
    failed = {name: value_of(metrics, "model_failed", model=name) for name in ("here", "broken", "unloaded")}
    assert failed == {"here": 0, "broken": 1, "unloaded": 0}
    assert value_of(metrics, "inference_pending_sequences", model="here", version="3") == 7
    info = {
        "device": "cpu",
        "provider": "CPUExecutionProvider",
        "kernels": "on",
        "precision": "float16",
        "task": "next_token",
        "variants": "dot_product,expressive",
    }
    assert value_of(metrics, "model_info", model="here", version="3", **info) == 1


def test_captures_are_shown_as_they_are_now(metrics: Metrics) -> None:
    assert value_of(metrics, "captures") == value_of(metrics, "capture_bytes") == 0
    assert value_of(metrics, "captures_taken_total") == 0
    # Zeros, so that a rate of them is one.
    assert value_of(metrics, "captures_lost_total", reason="evicted") == 0


def test_two_services_in_one_process_do_not_share() -> None:
    first, second = Metrics(), Metrics()
    first.observe_rejected(429, "queue_full")
    assert value_of(first, "inference_rejected_total", status="429", reason="queue_full") == 1
    assert value_of(second, "inference_rejected_total", status="429", reason="queue_full") is None


def test_every_metric_is_on_the_page_and_the_page_names_no_other(metrics: Metrics) -> None:
    metrics.observer("here", 3).ran(BatchRun(lengths=[1], pads=True, pack_seconds=0.0, compute_seconds=0.0))
    ours = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
        if not family.name.startswith("process_")
    }
    assert set(re.findall(r"^\| `((?:inference_|model_|attention_|captures?)\w*)`", PAGE, re.MULTILINE)) == ours
