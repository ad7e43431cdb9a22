"""A crowd: so many clients, each of which asks again as soon as it is answered."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

from soak.connection import Connection, Lost, NotSent, Question, Reply

TIMEOUT_S = 30.0
# Enough to see what is wrong.
MAX_EXAMPLES = 20

Judge = Callable[[Question, Reply], str | None]
"""What is wrong with an answer, in words; None if it is right."""


def expect_200(_: Question, reply: Reply) -> str | None:
    """Everything is to be answered."""
    return None if reply.status == 200 else f"{reply.status} {reply.body[:200]!r}"


class Crowd:
    """Clients of one server at a time.

    Args:
        port: of the server.
        draw: the next question, by its number.
        judge: of every answer.
        num_connections: how many ask.
        timeout_s: after which a question counts as never answered.
    """

    def __init__(
        self,
        port: int,
        draw: Callable[[int], Question],
        *,
        judge: Judge = expect_200,
        num_connections: int = 8,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.statuses: Counter[int] = Counter()
        """Answers, by status."""
        self.faults: list[str] = []
        """What was wrong, at most `MAX_EXAMPLES` of them."""
        self.num_faults = 0
        """Wrong answers, and questions that were sent and not answered."""
        self.num_refused = 0
        """Questions that were not sent, since nobody listened."""
        self._draw = draw
        self._judge = judge
        self._timeout_s = timeout_s
        self._connections = [Connection(port) for _ in range(num_connections)]
        self._number = 0

    @property
    def num_answers(self) -> int:
        """Of any status."""
        return self.statuses.total()

    async def ask(self, count: int) -> None:
        """Ask so many questions."""
        end = self._number + count
        await self._ask_while(lambda: self._number < end)

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask until the end of the block."""
        is_over = False
        asking = asyncio.create_task(self._ask_while(lambda: not is_over))
        try:
            yield
        finally:
            is_over = True
            await asking

    async def ask_until_refused(self) -> None:
        """Ask until nobody listens any more: every client hears it once."""
        await self._ask_while(lambda: True)

    async def close(self) -> None:
        """Hang up."""
        for connection in self._connections:
            await connection.close()

    async def _ask_while(self, condition: Callable[[], bool]) -> None:
        async def keep_asking(connection: Connection) -> None:
            while condition():
                number, self._number = self._number, self._number + 1
                if not await self._ask_once(connection, self._draw(number)):
                    return

        async with asyncio.TaskGroup() as tasks:
            for connection in self._connections:
                tasks.create_task(keep_asking(connection))

    async def _ask_once(self, connection: Connection, question: Question) -> bool:
        """Whether there is a server."""
        try:
            reply = await connection.ask(question, timeout_s=self._timeout_s)
        except NotSent:
            self.num_refused += 1
            return False
        except (Lost, TimeoutError) as error:
            self._note(f"no answer: {type(error).__name__} {error}")
            return True
        self.statuses[reply.status] += 1
        fault = self._judge(question, reply)
        if fault is not None:
            self._note(fault)
        return True

    def _note(self, fault: str) -> None:
        self.num_faults += 1
        if len(self.faults) < MAX_EXAMPLES:
            self.faults.append(fault)
