"""Exported models and real services, once for the whole run: an export takes seconds, a start too."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

# Before torch is imported, here and in every process that tests start: on small tensors and busy cores, its threads
# wait for each other ten times longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same tests whether or not somebody has built kernels in this checkout; those of kernels ask for them.
os.environ["ATTNSERVE_KERNELS"] = "off"

LABELS = tuple("abcdefghijklmnopqrst")
MAX_LENGTH = 320
COMMITTED = {
    folder.parent.name: folder.parent for folder in sorted(Path(__file__).parents[1].glob("checkpoints/*/config.json"))
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A service that answers, as a process of its own."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path
    """Its stderr."""

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    @property
    def cpu_seconds(self) -> float:
        """CPU time the process has used, all its threads included."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def post(self, route: str, document: Any = None, *, model: str = "tiny", **options: Any) -> httpx.Response:
        """POST to a route of a model; `document` becomes JSON unless it is bytes."""
        if isinstance(document, bytes):
            options["content"] = document
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        elif document is not None:
            options["json"] = document
        return self.client.post(f"/v1/models/{model}/{route}", **options)

    def ask(self, route: str, document: Any, **options: Any) -> Any:
        """The answer to a question that must succeed."""
        response = self.post(route, document, **options)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model in which every variant has a layer; random weights hide nothing."""
    import torch

    from attnserve.models.attention.layer import AttentionConfig
    from attnserve.models.checkpoint import save_checkpoint
    from attnserve.models.config import TransformerConfig
    from attnserve.models.transformer import Transformer

    config = TransformerConfig(
        vocabulary_size=len(LABELS),
        max_length=MAX_LENGTH,
        width=16,
        num_heads=2,
        positions="rotary",
        labels=LABELS,
        attention=(
            AttentionConfig(),
            AttentionConfig(variant="expressive", epsilon=0.001),
            AttentionConfig(variant="elliptical", scope="prefix", scaling="mean"),
        ),
    )
    model = Transformer(config, seed=1)
    with torch.no_grad():
        # Initial weights attend to everything alike; larger ones tell the keys apart.
        for block in model.layers:
            block.attention.query.weight *= 4
            block.attention.key.weight *= 4
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(model, folder, {"purpose": "tests"})
    return folder


@pytest.fixture(scope="session")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one exported model, `tiny`. Not to be written to: copy it."""
    from attnserve.export import export_checkpoint

    repository = tmp_path_factory.mktemp("bundles")
    export_checkpoint(checkpoint, repository / "tiny" / "1")
    return repository


@pytest.fixture(scope="session")
def committed_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the committed checkpoints, exported by the real command. Not to be written to: copy it."""
    repository = tmp_path_factory.mktemp("committed")
    for checkpoint in COMMITTED.values():
        run_export(checkpoint, repository / checkpoint.name / "1")
    return repository


@pytest.fixture(scope="session")
def breadth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a tiny untrained model of every kind that `tiny` is not. Not to be written to: copy it."""
    from tests.kinds import save_kinds

    checkpoints, repository = tmp_path_factory.mktemp("kinds"), tmp_path_factory.mktemp("breadth")
    kinds = save_kinds(checkpoints)

    def export(name: str) -> None:
        run_export(checkpoints / name, repository / name / "1", *kinds[name].flags)

    # Processes of their own, two at a time: an export computes on one core.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(export, kinds))
    return repository


@pytest.fixture(scope="session")
def copy_bundle(bundles: Path) -> Callable[[Path], Path]:
    """Copy the bundle to a place that must not exist."""

    def copy(place: Path) -> Path:
        return Path(shutil.copytree(bundles / "tiny" / "1", place))

    return copy


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """`with start_server(repository, "--max-queue", "8") as served:`: `attnserve serve`, ready, on a free port."""
    # What the first one measures, the others remember; and nothing of it stays in the home of whoever runs the tests.
    costs = tmp_path_factory.mktemp("costs")

    @contextlib.contextmanager
    def start(repository: Path, *flags: str, prelude: str = "", ready: bool = True) -> Iterator[Served]:
        port = free_port()
        code = f"{prelude}\nimport sys\nfrom attnserve.cli import main\nsys.exit(main())"
        limits = ("--num-threads", "1", "--tuning-seconds", "0.2", "--export-worker", "off")
        command = [sys.executable, "-c", code, "serve", str(repository), "--port", str(port), *limits, *flags]
        log = tmp_path_factory.mktemp("served") / "stderr"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTNSERVE_")}
        environment["ATTNSERVE_TUNING_CACHE"] = str(costs)
        environment["ATTNSERVE_KERNELS"] = "off"
        # Not in the repository, which other tests use too.
        environment["ATTNSERVE_CHECKPOINTS"] = str(log.with_name("checkpoints"))
        environment["ATTNSERVE_DATABASE_URL"] = f"sqlite:///{log.with_name('jobs.sqlite')}"
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environment)
        with process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            try:
                served = Served(client=client, process=process, log=log)
                wait_for(served, "/readyz" if ready else "/healthz")
                yield served
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise

    return start


@pytest.fixture(scope="session")
def server(bundles: Path, start_server: Any) -> Iterator[Served]:
    """The service of `bundles`, with its default limits. Whatever tests did to it, it met no bug."""
    with start_server(bundles) as served:
        yield served
        assert served.client.get("/healthz").status_code == 200
    assert served.process.returncode == 0
    assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="session")
def broad(breadth: Path, start_server: Any) -> Iterator[Served]:
    """The service of `breadth`, with its default limits. Whatever tests did to it, it met no bug."""
    with start_server(breadth) as served:
        assert all(model["ready"] for model in served.client.get("/v1/models").json()["models"])
        yield served
        assert served.client.get("/healthz").status_code == 200
    assert served.process.returncode == 0
    assert "Traceback" not in served.log.read_text()
    assert "Warning" not in served.log.read_text()


@pytest.fixture
def make_unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Has the system refuse with an error number to list a folder, and to look at what is in it.

    Permissions do not stop root, whom containers run tests as.
    """
    refused: dict[str, int] = {}

    def guard(name: str, is_listing: bool) -> None:
        original = getattr(os, name)

        def look(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            place = Path(path) if isinstance(path, str | os.PathLike) else Path()
            for folder in map(str, (place, *place.parents) if is_listing else place.parents):
                if folder in refused:
                    raise OSError(refused[folder], os.strerror(refused[folder]), str(place))
            return original(path, *arguments, **options)

        monkeypatch.setattr(os, name, look)

    for name, is_listing in {"listdir": True, "scandir": True, "stat": False, "lstat": False}.items():
        guard(name, is_listing)
    return lambda folder, number: refused.update({str(folder): number})


@pytest.fixture
def serve_app() -> Iterator[Callable[[Any], str]]:
    """Serve an app of this process on a real port; returns its URL. For what no process can be told to do on cue."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(_serving(app))


def run_export(checkpoint: Path, bundle: Path, *flags: str) -> None:
    """`attnserve export` in a process of its own."""
    command = [sys.executable, "-m", "attnserve", "export", str(checkpoint), str(bundle), *flags]
    # Not from the repository root: there, what is missing from the package would be found all the same.
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkpoint)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(served: Served, path: str) -> None:
    """Ask `path` until it answers 200; fails with the log when the process ends or a minute is over."""
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if served.client.get(path).status_code == 200:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            served.process.wait(timeout=0.1)
            break
    pytest.fail(f"{path} did not answer 200:\n{served.log.read_text()}")


@contextlib.contextmanager
def _serving(app: Any) -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        # The listening socket queues connections before uvicorn accepts the first.
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
