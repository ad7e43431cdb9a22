"""A service on one core, asked over one connection from another: what a request costs it in CPU time."""

import contextlib
import http.client
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.processes import ProcessTree

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Request:
    """What is asked."""

    path: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


@dataclass
class Service:
    """A server that answers."""

    tree: ProcessTree
    connection: http.client.HTTPConnection
    port: int

    def ask(self, request: Request) -> tuple[http.client.HTTPMessage, bytes]:
        """Headers and body of an answer, as they come: nothing is unpacked.

        Raises:
            RuntimeError: the answer is an error.
        """
        try:
            response = self._send(request)
        except http.client.RemoteDisconnected:
            # Servers close connections on which nothing is asked for a while, as when an answer is unpacked.
            self.connection.close()
            response = self._send(request)
        body = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{request.method} {request.path}: {response.status} {body[:300]!r}")
        return response.headers, body

    def _send(self, request: Request) -> http.client.HTTPResponse:
        self.connection.request(request.method, request.path, request.body, dict(request.headers))
        return self.connection.getresponse()

    def cpu_ms(self, requests: Sequence[Request]) -> float:
        """CPU time of the server per request, over all of them."""
        begin = self.tree.cpu_seconds()
        for request in requests:
            self.ask(request)
        return 1000 * (self.tree.cpu_seconds() - begin) / len(requests)

    def median_cpu_ms(self, requests: Sequence[Request], repeats: int = 5) -> float:
        """The same as the median of several rounds."""
        return statistics.median(self.cpu_ms(requests) for _ in range(repeats))


def split_cores() -> tuple[int, int]:
    """One core for the server, and another one for this process, which is put there.

    Raises:
        SystemExit: there are not two.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the client")
    os.sched_setaffinity(0, {cores[1]})
    return cores[0], cores[1]


@contextlib.contextmanager
def start_service(repository: Path, core: int, *flags: str) -> Iterator[Service]:
    """`attnserve serve` with one thread on one core, and no worker beside it, whose CPU time would count."""
    limits = ("--num-threads", "1", "--tuning-seconds", "2", "--tuning-cache", str(repository.parent / "costs"))
    limits += ("--export-worker", "off")
    command = ["-m", "attnserve", "serve", str(repository), *limits, *flags]
    with _start(command, core, repository.parent / "service.log", "/readyz") as service:
        yield service


@contextlib.contextmanager
def start_module(module: str, arguments: Sequence[str], core: int, log: Path) -> Iterator[Service]:
    """A module that serves on the port it is told last, and answers `/healthz`."""
    with _start(["-m", module, *arguments], core, log, "/healthz") as service:
        yield service


@contextlib.contextmanager
def _start(words: Sequence[str], core: int, log: Path, path: str) -> Iterator[Service]:
    port = _free_port()
    tree = ProcessTree([sys.executable, *words, "--port", str(port)], dict(os.environ), core, ROOT, log)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        service = Service(tree, connection, port)
        _wait(service, path, log)
        yield service
    finally:
        tree.stop()


def _wait(service: Service, path: str, log: Path) -> None:
    while service.tree.process.poll() is None:
        try:
            service.ask(Request(path))
            return
        except (OSError, http.client.HTTPException, RuntimeError):
            service.connection.close()
            time.sleep(0.1)
    raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
