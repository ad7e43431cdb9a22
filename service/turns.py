"""`Turns`: threads for one kind of work, and a queue before them that ends."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from attnserve.service.problems import Overloaded


class Turns(asyncio.Semaphore):
    """So many pieces of work at once, each in a thread that does nothing else; so many more may wait.

    Threads of their own, because those of asyncio are shared: work that takes long would keep out what is due. For one
    event loop; `body.in_turn` takes a turn and does the work.

    Args:
        num_threads: pieces of work at once.
        max_waiting: beyond them `acquire` refuses.
        work: what they do, in a word for metrics.
    """

    def __init__(self, num_threads: int, *, max_waiting: int, work: str) -> None:
        super().__init__(num_threads)
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix=work)
        self.max_waiting = max_waiting
        self.work = work
        self.num_waiting = 0

    async def acquire(self) -> Literal[True]:
        """Wait for a turn.

        Raises:
            Overloaded: too many are waiting.
        """
        if not self.locked():
            return await super().acquire()
        if self.num_waiting >= self.max_waiting:
            raise Overloaded(
                f"{self.num_waiting} answers wait for {self.work}, and at most {self.max_waiting} may", cause=self.work
            )
        self.num_waiting += 1
        try:
            return await super().acquire()
        finally:
            self.num_waiting -= 1

    def close(self) -> None:
        """Let the threads end when they have nothing left to do."""
        self.threads.shutdown(wait=False)
