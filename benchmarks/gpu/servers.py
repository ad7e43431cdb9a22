"""Whole servers under the same load: attnserve, and the same model in PyTorch behind plain FastAPI."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attnserve.bundle import read_manifest
from benchmarks.gpu.bundles import ROOT, Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.looking import look_at_all
from benchmarks.gpu.plan import Plan
from soak.server import find_port

START_SECONDS, STOP_SECONDS = 300.0, 20.0
COMPARED_LENGTHS = (8, 60, 200)


@dataclass(frozen=True, kw_only=True)
class Server:
    """How one is started; its port comes last."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One server under load."""

    answers: list[dict[str, Any]]
    """The likeliest token after each of a few sequences."""
    load: Mapping[str, Any]
    """What `attnserve bench --json` wrote."""


def run(plan: Plan) -> Iterator[Finding]:
    ours: dict[Bundle, Measured] = {}
    # Those that take longest to start come last: attnserve with every bundle, then its peers.
    for number in range(len(list_servers(plan, plan.timed_bundles()[0]))):
        yield from look_at_all(plan, plan.timed_bundles(), partial(find, number=number, ours=ours))


def find(plan: Plan, bundle: Bundle, number: int, ours: dict[Bundle, Measured]) -> Iterator[Finding]:
    """One of the servers; the first is attnserve as it is started by default, with which the others are compared."""
    server = list_servers(plan, bundle)[number]
    try:
        found = measure(plan, bundle, server)
    except (RuntimeError, OSError, ValueError, LookupError) as error:
        yield Finding(cells={**bundle.cells, "server": server.name}, broken=(str(error),))
        return
    yield judge(plan, bundle, server, found, ours.get(bundle))
    if not number:
        ours[bundle] = found


def list_servers(plan: Plan, bundle: Bundle) -> list[Server]:
    serve = ("-m", "attnserve", "serve", str(bundle.repository), "--device", plan.device, "--log-level", "warning")
    serve += ("--export-worker", "off", "--tuning-cache", str(Path(bundle.root) / "costs"))
    torch = ("-m", "benchmarks.gpu.torch_server", str(bundle.checkpoint), "--device", plan.device)
    torch += ("--precision", bundle.precision, "--batch-size", str(plan.num_clients))
    servers = [
        Server(name="attnserve", command=serve),
        Server(name="attnserve, graphs", command=(*serve, "--cuda-graphs", str(plan.num_graphs))),
        Server(name="PyTorch, eager", command=torch),
        *([Server(name="PyTorch, compiled", command=(*torch, "--compile"))] if plan.compiles else ()),
    ]
    if plan.device == "cuda":
        return servers
    # What is served on a CPU has no graphs; one thread each, as PyTorch's server takes there.
    return [Server(name="attnserve", command=(*serve, "--num-threads", "1")), *servers[2:]]


def measure(plan: Plan, bundle: Bundle, server: Server) -> Measured:
    """Start a server, ask it a few sequences, put it under load, and stop it.

    Raises:
        RuntimeError: it did not start, or the load could not be sent; with what it said last.
    """
    with tempfile.TemporaryDirectory() as work, listening(server, Path(work)) as url:
        answers = ask_few(plan, bundle, url)
        report = Path(work) / "load.json"
        words = ("bench", "--url", url, "--model", bundle.model, "--closed", str(plan.num_clients), "--quiet")
        words += ("--duration", str(plan.load_seconds), "--warmup", str(plan.warmup_seconds), "--json", str(report))
        words += ("--lengths", "{}-{}".format(*plan.range_of(read_manifest(bundle.folder).max_length)))
        done = subprocess.run([sys.executable, "-m", "attnserve", *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the load failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
        return Measured(answers=answers, load=json.loads(report.read_text("utf-8")))


def ask_few(plan: Plan, bundle: Bundle, url: str) -> list[dict[str, Any]]:
    """The same few sequences of whoever answers."""
    manifest, generator = read_manifest(bundle.folder), np.random.default_rng(0)
    lengths = [min(length, plan.longest, manifest.max_length) for length in COMPARED_LENGTHS]
    sequences = [generator.integers(0, manifest.vocabulary_size, length).tolist() for length in lengths]
    request = urllib.request.Request(
        f"{url}/v1/models/{bundle.model}/predict",
        json.dumps({"sequences": sequences}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return [prediction["top"][0][0] for prediction in json.load(response)["predictions"]]


def judge(plan: Plan, bundle: Bundle, server: Server, found: Measured, ours: Measured | None) -> Finding:
    load = found.load
    latency = load["latency_ms"] or {}
    cells = {
        **bundle.cells,
        "server": server.name,
        "sequences/s": f"{load['answered_per_s']:,.1f}",
        "p50, p99: ms": ", ".join(f"{latency[name]:.1f}" for name in ("p50", "p99") if latency),
        "attnserve / this": "" if ours is None else _ratio(ours.load["answered_per_s"], load["answered_per_s"]),
    }
    broken = [f"{count} requests: {what}" for what, count in load["errors"].items()]
    broken += [f"{count} requests: status {status}" for status, count in load["statuses"].items() if status != "200"]
    if not load["num_answered"]:
        broken.append("nothing was answered")
    if ours is not None and not agree(ours.answers, found.answers, allowed_difference(bundle)):
        broken.append("it answers otherwise than attnserve")
    notes = [f"the client could not keep up: {fault}" for fault in load["faults"]]
    notes += ["a CPU that others may use"] if plan.device == "cpu" else ["no law says how fast"]
    return Finding(cells=cells, broken=tuple(broken), unjudged="; ".join(notes))


def allowed_difference(bundle: Bundle) -> float:
    """Of two answers, each as far from the truth as the bundle may be."""
    return 2 * read_manifest(bundle.folder).certificate.logits.allowed


def agree(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], allowed: float) -> bool:
    """Whether the likeliest tokens have the same logits. Where two are as good as equal, either may come first."""
    return len(ours) == len(theirs) and all(
        abs(one["logit"] - other["logit"]) <= allowed for one, other in zip(ours, theirs, strict=True)
    )


@contextlib.contextmanager
def listening(server: Server, work: Path) -> Iterator[str]:
    """A server that is ready; its URL.

    Raises:
        RuntimeError: it ended, or is not ready in time.
    """
    port, log = find_port(), work / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *server.command, "--port", str(port)], cwd=ROOT, stdout=said, stderr=said
        )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > end:
                lines = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
                raise RuntimeError(f"it is not ready: {lines[-1]}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs else "nothing came"
