"""The HTTP client of a load: one aiohttp session over as many connections as it takes."""

import contextlib
import errno
import resource
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

import attnserve
from attnserve.service.bench.load import Reply, Unanswered
from attnserve.service.bench.options import LoadOptions
from attnserve.service.deadline import HEADER as TIMEOUT_HEADER

# Less than the five seconds after which uvicorn closes an idle connection: a request that meets the close is lost.
KEEP_ALIVE_S = 3.0
MAX_FILES = 1 << 16
OUT_OF_SOCKETS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS})


class Client:
    """Asks one model; `open_client` makes one."""

    def __init__(self, options: LoadOptions) -> None:
        headers = {"User-Agent": f"attnserve-bench/{attnserve.__version__}"}
        if options.api_key:
            headers["Authorization"] = f"Bearer {options.api_key}"
        self._options = options
        self._session = aiohttp.ClientSession(
            # A limit would hold back requests that are due, unseen: they would wait in the pool.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=None),
            # Each request has a timeout already, from when it was due.
            timeout=aiohttp.ClientTimeout(total=None),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._model = f"{options.url.rstrip('/')}/v1/models/{quote(options.model, safe='')}"
        self._predict = URL(f"{self._model}/predict", encoded=True)
        self._headers = {"Content-Type": "application/json"}
        if options.deadline_ms is not None:
            self._headers[TIMEOUT_HEADER] = str(options.deadline_ms)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def describe(self) -> Any:
        """What the server says of the model, parsed.

        Raises:
            ValueError: there is no server, no such model, or the key is refused.
        """
        url, timeout_s = self._options.url, self._options.timeout_s
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._session.get(URL(self._model, encoded=True), timeout=timeout) as response:
                status, body = response.status, await response.read()
        except TimeoutError:
            raise ValueError(f"--url: expected an answer within {timeout_s:g} s, got none from {url}") from None
        except aiohttp.ClientError as error:
            found = getattr(error, "strerror", None) or error
            raise ValueError(f"--url: expected a server at {url}, got: {found}") from None
        document = _parse(body)
        if status == 200:
            return document
        detail = document.get("detail", "") if isinstance(document, dict) else ""
        got = f"{status} {detail}".rstrip()
        if status in (401, 403):
            raise ValueError(f"--api-key: expected one that {url} accepts, got {got}")
        if status == 404 and detail:
            raise ValueError(f"--model: expected one that {url} serves, got {got}")
        raise ValueError(f"--url: expected a description of {self._options.model}, got {got} from {self._model}")

    async def ask(self, body: bytes) -> Reply:
        """Predict.

        Raises:
            Unanswered: no answer, or not all of it.
        """
        try:
            # A redirect is an answer: followed, it would be two requests that count as one.
            async with self._session.post(
                self._predict, data=body, headers=self._headers, allow_redirects=False
            ) as response:
                await response.read()
                return Reply(
                    status=response.status, server_ms=parse_server_timing(response.headers.getall("Server-Timing", []))
                )
        except aiohttp.ClientOSError as error:
            if error.errno in OUT_OF_SOCKETS:
                raise Unanswered("sockets") from None
            raise Unanswered("connect" if isinstance(error, aiohttp.ClientConnectorError) else "disconnect") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError):
            raise Unanswered("disconnect") from None
        except aiohttp.ClientError:
            raise Unanswered("protocol") from None


async def open_client(options: LoadOptions) -> Client:
    """A client of the running event loop: aiohttp makes sessions inside of one only."""
    return Client(options)


def parse_server_timing(headers: list[str]) -> dict[str, float]:
    """Milliseconds by name from Server-Timing (https://www.w3.org/TR/server-timing/); entries without any are left out.

    >>> parse_server_timing(["queue;dur=1.2, cache;desc=hit", "compute;dur=3.4"])
    {'queue': 1.2, 'compute': 3.4}
    """
    found: dict[str, float] = {}
    for entry in ",".join(headers).split(","):
        name, *parameters = entry.split(";")
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                with contextlib.suppress(ValueError):
                    found[name.strip()] = float(value.strip().strip('"'))
    return found


def raise_file_limit() -> None:
    """Let this process have as many connections as the system permits: 1024 are few beside a server that stalls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
