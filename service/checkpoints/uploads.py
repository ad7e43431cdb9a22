"""Uploads: bodies on their way to the disk, a piece at a time, while everybody else is answered."""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from attnserve.checkpoint_files import MAX_BYTES
from attnserve.checkpoints import Checkpoints, CheckpointsError, DigestError, ForeignError, Stored, UnknownError
from attnserve.service.body import IS_READING, read_length
from attnserve.service.checkpoints.headers import CONTENT_DIGEST, check_conditions, check_form, read_digest
from attnserve.service.problems import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    InsufficientStorage,
    Invalid,
    NotFound,
    Overloaded,
    Problem,
    TooLarge,
    Unavailable,
)
from attnserve.sweep import sweep
from attnserve.upload import Upload

Result = TypeVar("Result")

MAX_UPLOADS = 4
PIECE_BYTES = 1024 * 1024
# Of a client that sends nothing and does not leave either: its machine is gone, and nobody has said so.
PATIENCE_SECONDS = 60.0
SWEEP_SECONDS = 3600.0
RETRY_AFTER = "5"
# Fields as the store calls them, and where a request has them.
NAMES = {"checkpoint": "name", "sha256": CONTENT_DIGEST}
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

log = logging.getLogger(__name__)


class Uploads:
    """The store of checkpoints, as requests see it. For one event loop.

    Args:
        checkpoints: the store, which may not be there, or not be writable: then requests are told so.
        max_weights_bytes: of `model.safetensors`; the other files have limits of their own.
        patience_seconds: how long nothing may come before an upload is given up.
    """

    def __init__(
        self, checkpoints: Checkpoints, *, max_weights_bytes: int, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self.checkpoints = checkpoints
        self.max_weights_bytes = max_weights_bytes
        self.patience_seconds = patience_seconds
        self.num_open = 0
        # Of their own: a large file takes minutes to reach the disk, and others need asyncio's few threads.
        self._threads = ThreadPoolExecutor(MAX_UPLOADS, "upload")

    async def receive(self, request: Request, name: str, file: str) -> Stored:
        """Take the body of a request as a file of a checkpoint: all of it, or nothing is left.

        Raises:
            Problem: what is wrong with the request, or the disk.
            ClientDisconnect: the client left on the way.
        """
        check_form(request.headers)
        expected = read_digest(request.headers)
        limit_bytes = MAX_BYTES.get(file, self.max_weights_bytes)
        too_large = TooLarge.about("body", f"expected at most {limit_bytes} bytes, got more")
        length = read_length(request) or 0
        if length > limit_bytes:
            raise too_large

        def begin() -> None:
            self._check(request, name, file)
            upload.open(length)

        def commit() -> Stored:
            if not upload.num_bytes:
                raise BadRequest.about("body", "expected a file, got nothing")
            # Once more: others may have been faster.
            self._check(request, name, file)
            return upload.commit(name, file, expected)

        upload = Upload(self.checkpoints)
        with self._counting(), self.explaining():
            try:
                await self._run(begin)
                request.scope[IS_READING] = True
                piece, more = bytearray(), True
                while more:
                    message = await self._next(request)
                    piece += message.get("body", b"")
                    more = message.get("more_body", False)
                    if upload.num_bytes + len(piece) > limit_bytes:
                        raise too_large
                    if len(piece) >= PIECE_BYTES or not more:
                        await self._run(upload.write, piece)
                        piece = bytearray()
                return await self._run(commit)
            finally:
                # It waits for a thread that is still writing, and does nothing to what is committed.
                await self._run(upload.abort)

    async def ask(self, work: Callable[..., Result], *arguments: str) -> Result:
        """What a method of the store answers, off the event loop.

        Raises:
            Problem: what the store has to say against it.
        """
        with self.explaining():
            return await asyncio.to_thread(work, *arguments)

    async def keep_clean(self) -> None:
        """Sweep now, and every `SWEEP_SECONDS`, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(sweep, self.checkpoints, time.time())
            except OSError as error:
                log.warning("uploads cannot be swept: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    def close(self) -> None:
        """Wait for what is being written; to be called when no request is left."""
        self._threads.shutdown()

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Make problems of the errors of the store."""
        try:
            yield
        except CheckpointsError as error:
            field, _, message = str(error).partition(": ")
            raise _problem_of(error).about(NAMES.get(field, field), message) from None
        except OSError as error:
            log.warning("%s: %s", self.checkpoints.folder, error)
            reason = error.strerror or type(error).__name__
            if error.errno in FULL:
                raise InsufficientStorage(f"the disk of uploaded checkpoints is full: {reason}") from None
            raise Unavailable(f"uploaded checkpoints cannot be read or written: {reason}") from None

    def _check(self, request: Request, name: str, file: str) -> None:
        self.checkpoints.check_place(name, file)
        there = self.checkpoints.find(name, file)
        check_conditions(request.headers, None if there is None else there.sha256)

    async def _next(self, request: Request) -> Message:
        try:
            async with asyncio.timeout(self.patience_seconds):
                message = await request.receive()
        except TimeoutError:
            raise DeadlineExceeded(f"nothing of the body has come for {self.patience_seconds:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message

    async def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        if self.num_open >= MAX_UPLOADS:
            message = f"{self.num_open} uploads are under way and at most {MAX_UPLOADS} may"
            raise Overloaded(message, headers={"Retry-After": RETRY_AFTER}, cause="uploads")
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1


def _problem_of(error: CheckpointsError) -> type[Problem]:
    kinds = {UnknownError: NotFound, ForeignError: Conflict, DigestError: BadRequest}
    return kinds.get(type(error), Invalid)
