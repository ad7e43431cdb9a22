"""A crowd counts what services do to clients: answers, refusals, and questions that are never answered."""

import asyncio
import contextlib

import pytest

from soak.connection import Question
from soak.crowd import Crowd

QUESTION = Question(path="/", body=b"{}")
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BAD = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"


@contextlib.asynccontextmanager
async def scripted(*answers):
    """A server that gives these answers in turn over every connection; None hangs up without one."""

    async def talk(reader, writer):
        with contextlib.suppress(ConnectionError, EOFError):
            for answer in answers:
                await reader.readuntil(b"{}")
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def ask(count, *answers, **options):
    async def run():
        async with scripted(*answers) as port:
            crowd = Crowd(port, lambda _: QUESTION, num_connections=1, **options)
            await crowd.ask(count)
            await crowd.close()
            return crowd

    return asyncio.run(run())


def test_answers_are_counted():
    crowd = ask(3, GOOD, GOOD, GOOD)
    assert (dict(crowd.statuses), crowd.num_faults, crowd.num_refused) == ({200: 3}, 0, 0)


def test_another_status_is_a_fault():
    crowd = ask(2, GOOD, BAD)
    assert (dict(crowd.statuses), crowd.num_faults) == ({200: 1, 500: 1}, 1)
    assert crowd.faults == ["500 b'{}'"]


def test_a_question_that_was_sent_and_not_answered_is_a_fault():
    assert ask(1, None).num_faults == 1
    crowd = ask(3, GOOD, None)
    assert (dict(crowd.statuses), crowd.num_faults) == ({200: 2}, 1)


def test_half_an_answer_is_none():
    # The server hangs up after it, so nobody waits for the other half.
    crowd = ask(1, GOOD[:-1])
    assert (crowd.num_answers, crowd.num_faults) == (0, 1)
    assert crowd.faults[0].startswith("no answer: Lost IncompleteReadError")


def test_no_answer_in_time_is_a_fault():
    crowd = ask(1, b"HTTP/1.1 200 OK\r\nContent-Le", timeout_s=0.05)
    assert crowd.num_faults == 1


def test_who_is_told_that_it_was_the_last_answer_opens_another_connection():
    crowd = ask(3, LAST, None)
    assert (dict(crowd.statuses), crowd.num_faults) == ({200: 3}, 0)


def test_nobody_there_is_no_fault():
    async def run():
        async with scripted(LAST) as port:
            crowd = Crowd(port, lambda _: QUESTION, num_connections=4)
            await crowd.ask(4)
        await crowd.ask_until_refused()
        return crowd

    crowd = asyncio.run(run())
    assert (crowd.num_answers, crowd.num_faults, crowd.num_refused) == (4, 0, 4)


def test_a_judge_decides():
    crowd = ask(2, GOOD, GOOD, judge=lambda _, reply: f"wrong: {reply.body!r}")
    assert crowd.num_faults == 2
    assert crowd.faults == ["wrong: b'{}'"] * 2


@pytest.mark.parametrize("num_connections", [1, 3])
def test_it_asks_until_told_to_stop(num_connections):
    async def run():
        async with scripted(*[GOOD] * 10_000) as port:
            crowd = Crowd(port, lambda _: QUESTION, num_connections=num_connections)
            async with crowd.asking():
                while crowd.num_answers < 20:
                    await asyncio.sleep(0)
            await crowd.close()
            return crowd

    crowd = asyncio.run(run())
    assert crowd.num_answers >= 20
    assert crowd.num_faults == 0
