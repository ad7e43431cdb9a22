"""What is measured of one server, and how."""

import http.client
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.peers.conversation import Conversation
from benchmarks.peers.environments import ROOT
from benchmarks.peers.model import BATCH_SIZE, MODEL, PORT
from benchmarks.peers.processes import ProcessTree
from benchmarks.peers.table import Peer
from benchmarks.peers.traffic import encode

QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Of this shell's environment; its other settings are no part of the figures.
PASSED_ON = ("HOME", "LANG", "TMPDIR", "USER")


class PeerFailed(Exception):
    """A server did not start, or did not answer."""


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    repeats: int
    num_mixed: int
    num_tiny: int
    num_connections: int
    batch_size: int
    idle_seconds: float
    max_seconds: float
    server_core: int


def environment_of(bin_folder: Path, home: Path) -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    path = f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**passed_on, **QUIET, "PATH": path, "BENTOML_HOME": str(home), "PYTHONUNBUFFERED": "1"}


def measure(
    peer: Peer, plan: Plan, bin_folder: Path, cache: Path, bare: Conversation, client: Conversation
) -> dict[str, Any]:
    """Start a server, ask it everything, end it."""
    port = _free_port()
    words = [word.format(port=port, repository=cache / "repository") for word in peer.command]
    environment = environment_of(bin_folder, cache / "bentoml") | {
        MODEL: str(model_file(cache)),
        PORT: str(port),
        BATCH_SIZE: str(plan.batch_size if peer.is_batched else 1),
    }
    log = cache / "logs" / f"{peer.name}.log"
    start = time.monotonic()
    tree = ProcessTree([str(bin_folder / words[0]), *words[1:]], environment, plan.server_core, ROOT, log)
    try:
        _wait_until_it_answers(peer, port, tree, log, plan.max_seconds)
        result: dict[str, Any] = {"seconds_to_first_answer": time.monotonic() - start}
        result |= _measure_loads(peer, plan, port, tree, bare, client)
        time.sleep(1)
        idle, idle_start = tree.cpu_seconds(), time.monotonic()
        time.sleep(plan.idle_seconds)
        result["idle_core_share"] = (tree.cpu_seconds() - idle) / (time.monotonic() - idle_start)
        result["memory_bytes"] = tree.memory_bytes()
        result["num_processes"], result["num_threads"] = len(tree.pids()), tree.num_threads()
        result["sigterm"] = asdict(tree.stop())
        return result
    finally:
        tree.kill()


def model_file(cache: Path) -> Path:
    (path,) = (cache / "repository").glob("*/1/model.onnx")
    return path


def _measure_loads(
    peer: Peer, plan: Plan, port: int, tree: ProcessTree, bare: Conversation, client: Conversation
) -> dict[str, list[dict[str, Any]]]:
    def time_bare(traffic: str, count: int) -> float:
        return float(bare.ask(f"{traffic} {count}"))

    def load(traffic: str, count: int, connections: int) -> dict[str, Any]:
        """One pass over some traffic."""
        order = {
            "port": port,
            "path": peer.path,
            "dialect": peer.dialect,
            "traffic": traffic,
            "num_requests": count,
            "connections": connections,
            "max_seconds": plan.max_seconds,
        }
        answer = client.ask(orjson.dumps(order).decode())
        before = tree.cpu_seconds()
        if answer == "ready":
            answer = client.ask("go")
        seconds = tree.cpu_seconds() - before
        result = orjson.loads(answer)
        if "failure" in result:
            raise PeerFailed(f"{traffic}, {connections} connections: {result['failure']}")
        latencies = result.pop("seconds")
        quantiles = {f"p{percent}_seconds": _quantile(latencies, percent / 100) for percent in (50, 95, 99)}
        return {"num_requests": count, "cpu_seconds_per_request": seconds / count, **result, **quantiles}

    def repeat(traffic: str, count: int, connections: int) -> list[dict[str, Any]]:
        """Passes, each compared with bare ONNX Runtime right before and right after: machines have moods."""
        loads = []
        # Warm-up: arenas grow, dispatchers learn.
        load(traffic, min(count, 100), connections)
        before = time_bare(traffic, count)
        for _ in range(plan.repeats):
            result = load(traffic, count, connections)
            after = time_bare(traffic, count)
            bare_seconds = (before + after) / 2 / count
            ratio = result["cpu_seconds_per_request"] / bare_seconds
            loads.append({**result, "bare_seconds_per_request": bare_seconds, "ratio": ratio})
            before = after
        return loads

    # The quiet client comes first: BentoML's dispatcher would go on waiting for the company that a crowd has taught it
    # to expect.
    return {
        "tiny_alone": repeat("tiny", plan.num_tiny, 1),
        "tiny_saturated": repeat("tiny", plan.num_tiny, plan.num_connections),
        "mixed": repeat("mixed", plan.num_mixed, plan.num_connections),
    }


def _wait_until_it_answers(peer: Peer, port: int, tree: ProcessTree, log: Path, max_seconds: float) -> None:
    """A server is up when it answers a real request."""
    body = encode(peer.dialect, list(range(8)))
    deadline = time.monotonic() + max_seconds
    while time.monotonic() < deadline:
        if tree.process.poll() is not None:
            raise PeerFailed(f"ended with {tree.process.returncode} before it answered: {_tail(log)}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("POST", peer.path, body, {"Content-Type": "application/json"})
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise PeerFailed(f"no answer within {max_seconds:g} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text("utf-8", "replace").strip()[-1000:]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _quantile(ascending: list[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
