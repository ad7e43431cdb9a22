"""`attnserve serve`: settings, catalogue, app, uvicorn."""

import argparse
import gc
import logging
import signal

import uvicorn

from attnserve.service.app import create_app
from attnserve.service.catalogue import Catalogue
from attnserve.service.logs import set_up_logs
from attnserve.service.metrics import Metrics
from attnserve.service.settings import read_settings

log = logging.getLogger(__name__)


def serve(parsed: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code."""
    settings = read_settings(parsed)
    # Python looks for cycles of garbage after every 700 new objects. In a body of five million empty lists that takes
    # two seconds of 2.9, in which nobody else is answered.
    gc.set_threshold(100_000, 50, 100)
    set_up_logs(settings.log_level, settings.log_format)
    metrics = Metrics()
    catalogue = Catalogue(parsed.repository, settings, metrics.observer)
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    config = uvicorn.Config(
        create_app(catalogue, metrics=metrics, on_failure=stop),
        host=settings.host,
        port=settings.port,
        log_config=None,
        # Paths are user data; `service.access` logs what may be known.
        access_log=False,
        # The server's name tells an attacker what to try.
        server_header=False,
        timeout_graceful_shutdown=settings.max_drain_seconds,
    )
    server = uvicorn.Server(config)

    def obey(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal it has obeyed once more, under the handlers it found. Under Python's own the process
    # would die of it, with a traceback for Ctrl-C; having stopped when told to is success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, obey)
    # Bound here, not by uvicorn: a port that is taken is known before models are loaded.
    server.run([config.bind_socket()])
    return 1 if failures or not server.started else 0
