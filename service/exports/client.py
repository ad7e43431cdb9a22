"""`Client`: the queue of export jobs, asked from the event loop: in threads of its own, and not for longer than a
request waits. A slow database keeps nobody waiting who does not ask for exports.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from attnserve.service.exports.job import Queue, QueueDown
from attnserve.service.problems import NotInstalled, Unavailable

Found = TypeVar("Found")

NUM_THREADS = 4
PATIENCE_SECONDS = 10.0


class Client:
    """Asks a queue that is opened when somebody asks first.

    Args:
        open_queue: may take long, and is called in a thread.
        patience_seconds: how long an answer may take.
    """

    def __init__(self, open_queue: Callable[[], Queue], *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._open_queue = open_queue
        self._patience_seconds = patience_seconds
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="exports")
        self._opening = threading.Lock()
        self._queue: Queue | None = None

    async def ask(self, work: Callable[[Queue], Found]) -> Found:
        """What `work` finds in the queue.

        Raises:
            NotInstalled: the extra `jobs` is missing.
            Unavailable: the queue cannot be asked now.
        """
        asking = asyncio.get_running_loop().run_in_executor(self._threads, self._ask, work)
        try:
            async with asyncio.timeout(self._patience_seconds):
                return await asking
        except TimeoutError:
            # If no thread has begun with it, it is never done.
            message = f"the database of export jobs has not answered within {self._patience_seconds:g} s"
            raise Unavailable(message) from None
        except QueueDown as down:
            raise Unavailable(str(down)) from None

    async def close(self) -> None:
        """Ask nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._queue is not None:
            await asyncio.to_thread(self._queue.close)

    def _ask(self, work: Callable[[Queue], Found]) -> Found:
        with self._opening:
            if self._queue is None:
                self._queue = self._open_queue()
        return work(self._queue)


def open_database(url: str) -> Queue:
    """The queue in a database.

    Raises:
        NotInstalled: the extra `jobs` is missing.
    """
    try:
        from attnserve.service.exports.queue import DBOSQueue
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("attnserve"):
            raise
        raise NotInstalled(
            f"exports need {error.name}, which this service runs without: pip install 'attnserve[jobs]'"
        ) from None
    return DBOSQueue(url)
