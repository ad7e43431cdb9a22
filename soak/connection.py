"""A connection that says exactly what became of a request: answered, refused before it was sent, or lost."""

import asyncio
import contextlib
from dataclasses import dataclass


class NotSent(Exception):
    """There is no server, or it had left before anything was sent: another one can be asked."""


class Lost(Exception):
    """Sent, and never answered in whole."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Question:
    """What is sent with POST."""

    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class Reply:
    """An answer that came in whole."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class Connection:
    """One client that keeps its connection while the server does, and opens the next one then.

    aiohttp and httpx check what they send, and decide themselves when to send it again; here nothing is hidden.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, question: Question, *, timeout_s: float) -> Reply:
        """Send a question and read the answer.

        Raises:
            NotSent: nobody listens.
            Lost: the connection broke, or what came is no HTTP.
            TimeoutError: no answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._open()
                return await self._ask(question)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection, if there is one."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _open(self) -> None:
        if self._reader is not None and self._reader.at_eof():
            await self.close()
        if self._reader is not None:
            return
        try:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            raise NotSent from None
        except OSError as error:
            raise Lost(f"while connecting: {error!r}") from None

    async def _ask(self, question: Question) -> Reply:
        assert self._writer is not None
        head = [b"POST %b HTTP/1.1" % question.path.encode(), b"Host: soak", b"Content-Length: %d" % len(question.body)]
        head += [b"%b: %b" % header for header in question.headers]
        try:
            self._writer.write(b"\r\n".join([*head, b"", question.body]))
            await self._writer.drain()
            reply = await self._read()
        except (OSError, EOFError, ValueError) as error:
            raise Lost(f"{type(error).__name__}: {error}") from None
        if reply.headers.get("connection", "").lower() == "close":
            await self.close()
        return reply

    async def _read(self) -> Reply:
        assert self._reader is not None
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._reader.readexactly(int(headers["content-length"])) if "content-length" in headers else b""
        return Reply(status=int(first.split(" ")[1]), headers=headers, body=body)
