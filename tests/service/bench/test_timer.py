"""The event loop that wakes up on time still does all that one does."""

import asyncio
import socket

from attnserve.service.bench.timer import make_loop


def test_timers_and_sockets():
    async def talk():
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            other.setblocking(False)
            reading = asyncio.create_task(loop.sock_recv(other, 5))
            # The read waits while the loop waits for a timer.
            await asyncio.sleep(0.001)
            await loop.sock_sendall(one, b"hello")
            return await reading

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(talk()) == b"hello"


def test_a_loop_may_have_no_timer():
    async def wait():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        await asyncio.to_thread(loop.call_soon_threadsafe, event.set)
        await event.wait()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(wait())
