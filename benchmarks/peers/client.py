"""Whoever asks: so many keep-alive connections, each sending its next request when the last one is answered.

A process of its own, on a core of its own, so that nothing of it is in a server's figures. Standard input has a `Load`
per line as JSON; it answers `ready` once it has connected, and after one more line of input sends, and answers with a
JSON object.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.peers.traffic import Truth, decode, encode, is_right


class _Connection:
    """As much HTTP/1.1 as these servers speak."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if b"transfer-encoding: chunked" not in head:
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            return status, await self.reader.readexactly(length)
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return status, body


async def _send(load: dict[str, Any], sequences: list[list[int]], truths: list[Truth]) -> dict[str, Any]:
    requests = []
    for sequence in sequences:
        body = encode(load["dialect"], sequence)
        head = (
            f"POST {load['path']} HTTP/1.1\r\nHost: 127.0.0.1:{load['port']}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    connections = [
        _Connection(*await asyncio.open_connection("127.0.0.1", load["port"])) for _ in range(load["connections"])
    ]
    print("ready", flush=True)
    sys.stdin.readline()

    numbers = iter(range(len(requests)))
    answers: list[tuple[int, bytes]] = [(0, b"")] * len(requests)
    seconds = [0.0] * len(requests)

    async def work(connection: _Connection) -> None:
        # All share one iterator: a connection takes the next request there is.
        for number in numbers:
            start = time.perf_counter()
            answers[number] = await connection.ask(requests[number])
            seconds[number] = time.perf_counter() - start

    start = time.perf_counter()
    async with asyncio.timeout(load["max_seconds"]):
        await asyncio.gather(*(work(connection) for connection in connections))
    wall = time.perf_counter() - start
    for connection in connections:
        connection.writer.close()
    return {"wall_seconds": wall, "seconds": sorted(seconds), **_judge(load, answers, truths)}


def _judge(load: dict[str, Any], answers: list[tuple[int, bytes]], truths: list[Truth]) -> dict[str, Any]:
    errors = [f"{status}: {body[:200].decode(errors='replace')}" for status, body in answers if status != 200]
    num_wrong = sum(
        not is_right(decode(load["dialect"], body), truth)
        for (status, body), truth in zip(answers, truths, strict=True)
        if status == 200
    )
    return {"num_errors": len(errors), "first_error": errors[0] if errors else None, "num_wrong": num_wrong}


def main() -> None:
    traffic = orjson.loads(Path(sys.argv[1]).read_bytes())
    truths = {
        name: [Truth(**truth) for truth in many] for name, many in orjson.loads(Path(sys.argv[2]).read_bytes()).items()
    }
    for line in sys.stdin:
        load = orjson.loads(line)
        many = slice(load["num_requests"])
        try:
            result = asyncio.run(_send(load, traffic[load["traffic"]][many], truths[load["traffic"]][many]))
        except (OSError, EOFError, TimeoutError, ValueError, LookupError, TypeError) as error:
            result = {"failure": f"{type(error).__name__}: {error}"}
        print(orjson.dumps(result).decode(), flush=True)


if __name__ == "__main__":
    main()
