"""`attnserve serve`: settings, catalogue, app, uvicorn."""

import argparse
import asyncio
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from attnserve.flags import flag_of, spell
from attnserve.kernels import AUTO, explain_unusable, find_kernels
from attnserve.logs import set_up_logs
from attnserve.machine import bound_malloc
from attnserve.service.app import create_app
from attnserve.service.captures.levels import ANY
from attnserve.service.catalogue import Catalogue
from attnserve.service.compute_settings import GPU_SETTINGS
from attnserve.service.configuration import describe_settings, read_settings
from attnserve.service.exports.companion import find_companion
from attnserve.service.head import BoundedHead
from attnserve.service.metrics import Metrics
from attnserve.service.settings import Settings
from attnserve.sessions import NO_DEVICE, DeviceError, explain_no_cuda

if TYPE_CHECKING:
    # An extra.
    from attnserve.service.tracing import Tracing

log = logging.getLogger(__name__)

# EX_SOFTWARE of sysexits.h.
EXIT_DEVICE_LOST = 70
# How long a client that keeps its connection may take to ask once more, and to be told that it was the last time.
LINGER_S = 0.5


class _Server(uvicorn.Server):
    """uvicorn stops accepting as soon as it is told to stop, before any load balancer has noticed. This one waits."""

    def __init__(self, config: uvicorn.Config, catalogue: Catalogue, drain_delay_ms: float) -> None:
        super().__init__(config)
        self.catalogue = catalogue
        self.drain_delay_ms = drain_delay_ms

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Be ready no more, and stop after the delay; at once when told by Ctrl-C, or a second time."""
        if sig == signal.SIGTERM and self.drain_delay_ms and not self.catalogue.is_draining:
            self.catalogue.is_draining = True
            log.info("told to stop: not ready any more, stopping in %g ms", self.drain_delay_ms)
            timer = threading.Timer(self.drain_delay_ms / 1000, super().handle_exit, (sig, frame))
            timer.daemon = True
            timer.start()
            return
        self.catalogue.is_draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, answer what comes over connections that are open with `Connection: close`, and end.

        uvicorn closes connections on which nothing has arrived yet at once. A client that asks all the time has sent
        its next request by then, and would never know what became of it.
        """
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        loop = asyncio.get_running_loop()
        end = loop.time() + LINGER_S
        while self.server_state.connections and loop.time() < end and not self.force_exit:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


def check_exposure(settings: Settings) -> None:
    """Refuse to listen to other machines where whoever reaches the port could ask.

    Raises:
        ValueError: the address is not this machine's own alone, and there are no keys; or no machine has it.
    """
    if settings.keys or settings.keys_file or settings.allow_anonymous:
        return
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    # UnicodeError: no name could look like this.
    except (OSError, UnicodeError):
        raise ValueError(f"--host (ATTNSERVE_HOST): expected an address or a name, got {settings.host!r}") from None
    # Without the scope that may follow an IPv6 address: fe80::1%eth0.
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise ValueError(
            f"--host (ATTNSERVE_HOST): expected a loopback address where there are no keys, got {settings.host!r}; "
            "make a key (attnserve key NAME --scopes predict,attention --file FILE) and give --keys-file FILE, or give "
            "--allow-anonymous if a gateway decides who may ask"
        )


def check_kernels(settings: Settings) -> None:
    """Look for the library of kernels.

    Raises:
        ValueError: the one asked for is not there, or is none.
    """
    try:
        library = find_kernels(settings.kernels)
    except ValueError as error:
        raise ValueError(f"--kernels (ATTNSERVE_KERNELS): {str(error).partition(': ')[2]}") from None
    reason = None if library is None else explain_unusable(library)
    if reason is None:
        log.info("kernels: %s", library or "none, function bodies compute attention")
    elif settings.kernels == AUTO:
        log.warning("kernels: %s cannot be loaded, function bodies compute attention: %s", library, reason)
    else:
        raise ValueError(f"--kernels (ATTNSERVE_KERNELS): expected a library that loads, got {library}: {reason}")


def warn_of_strangers(settings: Settings, models: Collection[str]) -> None:
    """Log the names in settings that no model has: misspelt, they would leave a model's queries and keys open."""
    for flag, named in (("--captures", settings.captures), ("--tuning", settings.tuning)):
        for name in sorted(named.keys() - {ANY, *models}):
            log.warning("%s: the repository has no model %s", flag, name)


def check_gpus(settings: Settings) -> None:
    """Refuse to run without what is asked of GPUs.

    Raises:
        ValueError: models are to run on the CPU, and something is asked of GPUs.
        DeviceError: models are to run on GPUs, and there is none.
    """
    fields = Settings.model_fields
    asked = [name for name in GPU_SETTINGS if getattr(settings, name) != fields[name].default]
    if settings.device == "cpu":
        if asked:
            raise ValueError(f"{spell(asked[0])}: expected --device cuda or auto beside it, got --device cpu")
        return
    reason = explain_no_cuda()
    if reason is not None and settings.device == "cuda":
        raise DeviceError(f"{NO_DEVICE}: {reason}")
    if reason is not None and asked:
        log.warning("%s: nothing follows from it, models run on the CPU: %s", ", ".join(map(flag_of, asked)), reason)


def open_listener(host: str, port: int) -> socket.socket:
    """The bound socket, whose connections send what they have at once.

    Raises:
        ValueError: the port is somebody else's, or the address is not this machine's.
    """
    try:
        return _bind(host, port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            message = f"--port (ATTNSERVE_PORT): expected one that is free and may be taken, got {port}"
        else:
            message = f"--host (ATTNSERVE_HOST): expected an address of this machine, got {host!r}"
        raise ValueError(f"{message}: {error.strerror}") from None


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Head and body of an answer are two writes; else the body waits for the delayed acknowledgement, 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def find_tracing(settings: Settings) -> "Tracing | None":
    """What settings say of traces.

    Raises:
        ModuleNotFoundError: they are wanted, and the extra `tracing` is missing.
    """
    if not settings.otlp_endpoint:
        return None
    from attnserve.service.tracing import start_tracing

    return start_tracing(settings.otlp_endpoint, settings.trace_ratio)


def _leave(code: int) -> NoReturn:
    """End the process at once. Python would let go of sessions, whose destructors throw where CUDA fails.

    That is SIGABRT, and no exit code (`CUDAPinnedAllocator::Free` of ONNX Runtime, out of an arena's destructor).
    """
    logging.shutdown()
    os._exit(code)


def serve(parsed: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code, or does not return if the device is lost."""
    settings = read_settings(parsed)
    check_exposure(settings)
    # Before anything is logged: a missing extra is one line, as a wrong setting is.
    tracing = find_tracing(settings)
    companion = find_companion(Path(parsed.repository), settings)
    # Python looks for cycles of garbage after every 700 new objects. In a body of five million empty lists that takes
    # two seconds of 2.9, in which nobody else is answered.
    gc.set_threshold(100_000, 50, 100)
    bound_malloc()
    set_up_logs(settings.log_level, settings.log_format)
    described = describe_settings(settings)
    text = ", ".join(f"{name}={value}" for name, value in described.items())
    log.info("settings: %s", text, extra={"settings": described})
    # Known before anything is loaded, or listens.
    check_kernels(settings)
    check_gpus(settings)
    metrics = Metrics()
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    def give_up() -> None:
        # Whoever started the process starts it again, on a device that works.
        server.should_exit = True

    catalogue = Catalogue(parsed.repository, settings, metrics.observer, on_lost=give_up)
    warn_of_strangers(settings, catalogue.versions)
    config = uvicorn.Config(
        create_app(
            catalogue,
            metrics=metrics,
            tracing=tracing,
            # Not before: its start would disturb what is measured of models, and delay the first answer.
            on_loaded=companion.start if companion is not None else lambda: None,
            on_failure=stop,
        ),
        http=BoundedHead,
        host=settings.host,
        port=settings.port,
        log_config=None,
        # Paths are user data; `service.access` logs what may be known.
        access_log=False,
        # The server's name tells an attacker what to try.
        server_header=False,
        timeout_graceful_shutdown=settings.max_drain_seconds,
    )
    server = _Server(config, catalogue, settings.drain_delay_ms)

    def obey(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal it has obeyed once more, under the handlers it found. Under Python's own the process
    # would die of it, with a traceback for Ctrl-C; having stopped when told to is success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, obey)
    # Bound here, not by uvicorn: a port that is taken is known before models are loaded.
    listener = open_listener(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info("listening on http://%s:%d", host, listener.getsockname()[1])
    try:
        server.run([listener])
    finally:
        if companion is not None:
            companion.stop()
    if tracing is not None:
        tracing.close()
    if catalogue.is_lost:
        _leave(EXIT_DEVICE_LOST)
    return 1 if failures or not server.started else 0
