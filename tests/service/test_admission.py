"""Who is let into the queue, by the work that waits; several engines; and a device that is lost."""

import asyncio
import contextlib
import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.service.batching import Batcher
from attnserve.service.cost import Cost
from attnserve.service.job import Job, LogitsAnswer
from attnserve.service.problems import InternalError, Overloaded, Unavailable
from attnserve.service.queue import Ticket
from attnserve.service.stages import Stages

# A second a step, and nothing is saved by company: everybody runs alone.
ALONE = Cost(seconds_per_run=-1e-9, seconds_per_row=1, seconds_per_cell=0, bytes_per_row=1, bytes_per_cell=0)
# Sequences of one length always share a batch, others never.
SHARED = Cost(seconds_per_run=0, seconds_per_row=0, seconds_per_cell=1, bytes_per_row=1, bytes_per_cell=0)
POISON = 666


class PanicException(BaseException):
    """As errors of Rust libraries are: not an `Exception`."""


def job(number, length=1):
    return Job(sequence=np.full(length, number), positions=np.array([0]))


class World:
    """A model that runs when the test lets it, for as long as the test says, and a clock."""

    def __init__(self):
        self.now = 100.0
        self.took = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches = []
        self.error = ValueError

    def run(self, jobs):
        numbers = [int(one.sequence[0]) for one in jobs]
        self.entered.release()
        self.gate.wait()
        self.batches.append(numbers)
        self.now += self.took
        if POISON in numbers:
            raise self.error("poisoned")
        return [LogitsAnswer(logits=np.float32(one.sequence[:1]), captures={}) for one in jobs]


@pytest.fixture
def world():
    return World()


@pytest.fixture
def make(world, monkeypatch):
    # Estimates are right here.
    monkeypatch.setattr("attnserve.service.admission.MARGIN", 1.0)
    with contextlib.ExitStack() as stack:

        def start(cost=ALONE, **options):
            limits = {
                "max_batch_bytes": 1e9,
                "max_queue": 5000,
                "max_batch_ms": 1e-3,
                "clock": lambda: world.now,
                **options,
            }
            batcher = Batcher(world.run, cost, **limits)
            stack.callback(batcher.close)
            stack.callback(world.gate.set)
            return batcher

        yield start


def numbers(answers):
    return [int(answer.logits[0]) for answer in answers]


async def until(condition):
    # Who is refused never waits: without an end the test would not fail but hang.
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def fill(world, batcher, *requests, workers=1):
    """Occupy the workers, and let requests of so many sequences of one step wait; returns their tasks."""
    world.gate.clear()
    tasks = []
    for _ in range(workers):
        tasks.append(asyncio.create_task(batcher.submit([job(0)])))
        await asyncio.to_thread(world.entered.acquire)
    for count in requests:
        tasks.append(asyncio.create_task(batcher.submit([job(1)] * count)))
    await until(lambda: batcher.num_waiting == sum(requests))
    return tasks


async def finish(world, tasks):
    world.gate.set()
    await asyncio.gather(*tasks)


async def refusal(batcher, jobs, **options):
    # Who is let in waits for a model that stands still.
    with pytest.raises(Overloaded) as caught:
        await asyncio.wait_for(batcher.submit(jobs, **options), 20)
    return caught.value


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_who_would_be_late_is_told_at_once(world, make, num_workers):
    batcher = make(num_workers=num_workers)

    async def ask():
        tasks = await fill(world, batcher, *[1] * 12, workers=num_workers)
        # What waits, what every worker runs, and then the own second.
        wait = (12 + num_workers) / num_workers
        refused = await refusal(batcher, [job(2)], due=world.now + wait + 1 - 1.5)
        assert f"12 sequences are waiting, about {1000 * wait:.0f} ms of work" in refused.detail
        assert f"the timeout leaves {1000 * (wait - 0.5):.0f}" in refused.detail
        assert refused.headers == {"Retry-After": "2"}
        assert batcher.num_waiting == 12
        tasks.append(asyncio.create_task(batcher.submit([job(3)], due=world.now + wait + 1.1)))
        tasks.append(asyncio.create_task(batcher.submit([job(4)])))
        await until(lambda: batcher.num_waiting == 14)
        await finish(world, tasks)

    asyncio.run(ask())


def test_the_pace_is_learned(world, make):
    batcher = make()
    # Twice as long as estimated, again and again.
    world.took = 2.0
    for _ in range(20):
        asyncio.run(batcher.submit([job(1)]))
    pace = 2 - 0.9**20

    async def ask():
        tasks = await fill(world, batcher, *[1] * 10)
        refused = await refusal(batcher, [job(2)], due=world.now + 12 * pace - 0.1)
        assert f"about {11_000 * pace:.0f} ms" in refused.detail
        tasks.append(asyncio.create_task(batcher.submit([job(2)], due=world.now + 12 * pace + 0.1)))
        await until(lambda: batcher.num_waiting == 11)
        await finish(world, tasks)

    asyncio.run(ask())


def test_a_machine_that_stood_still_is_not_the_pace(world, make):
    batcher = make()
    world.took = 3600.0
    asyncio.run(batcher.submit([job(1)]))
    world.took = 1.0

    async def ask():
        tasks = await fill(world, batcher, *[1] * 10)
        # 1 + 0.1 (4 - 1), and not 360.
        assert "about 14300 ms" in (await refusal(batcher, [job(2)], due=world.now)).detail
        await finish(world, tasks)

    asyncio.run(ask())


@pytest.mark.parametrize("due", [1e-9, 0.5])
def test_alone_nobody_is_refused_whatever_the_pace(world, make, due):
    batcher = make()
    world.took = 1e6
    for _ in range(50):
        asyncio.run(batcher.submit([job(1)]))
    assert numbers(asyncio.run(batcher.submit([job(7, 1000)], due=world.now + due))) == [7]


def test_a_request_of_thousands_does_not_shut_out_one_of_one(world, make):
    batcher = make()

    async def ask():
        tasks = await fill(world, batcher, 4000)
        # One runs and one of the thousands goes first, all others after it.
        tasks.append(asyncio.create_task(batcher.submit([job(2)], due=world.now + 3.1)))
        await until(lambda: batcher.num_waiting == 4001)
        tasks.append(asyncio.create_task(batcher.submit([job(3), job(4)], due=world.now + 5.1)))
        await until(lambda: batcher.num_waiting == 4003)
        refused = await refusal(batcher, [job(5)] * 100, due=world.now + 50)
        # What runs, 100 turns of the thousands, one of the second and two of the third.
        assert "about 104000 ms of work" in refused.detail
        for task in tasks[1:2]:
            task.cancel()
        world.gate.set()
        return [numbers(answers) for answers in await asyncio.gather(*tasks[2:])]

    assert asyncio.run(ask()) == [[2], [3, 4]]


@pytest.mark.parametrize(("seconds", "retry_after"), [(1e-12, 1), (0.3, 2), (1, 6), (11.9, 60), (1e6, 60), (1e307, 60)])
def test_when_to_come_back(world, make, seconds, retry_after):
    cost = Cost(seconds_per_run=0, seconds_per_row=seconds, seconds_per_cell=0, bytes_per_row=1, bytes_per_cell=0)
    batcher = make(cost, max_queue=20)

    async def ask():
        tasks = await fill(world, batcher, *[1] * 20)
        # Of the work of 20, that of 5 must go; it takes one at a time.
        full = await refusal(batcher, [job(2)] * 5)
        assert "20 sequences are waiting and at most 20 may; 5 more were sent" in full.detail
        assert full.headers == {"Retry-After": str(retry_after)}
        late = await refusal(batcher, [job(2)], due=world.now - 1)
        assert 1 <= int(late.headers["Retry-After"]) <= 60
        await finish(world, tasks)

    asyncio.run(ask())


def ask_at_once(batcher, *requests, **options):
    """All in one turn of the event loop, in which no engine is woken yet."""
    return [asyncio.create_task(batcher.submit(jobs, **options)) for jobs in requests]


async def started(world):
    """A batch, in time: who is refused starts none."""
    assert await asyncio.to_thread(world.entered.acquire, timeout=20)


async def settle(tasks):
    """Of each, the numbers it was answered, or the error."""
    async with asyncio.timeout(20):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result if isinstance(result, Exception) else numbers(result) for result in results]


def test_what_has_begun_finds_a_place(world, make):
    batcher = make(max_queue=2)

    async def ask():
        tasks = await fill(world, batcher, 1, 1)
        await refusal(batcher, [job(5)], due=world.now + 100)
        # Nor is it told that it will be late: its deadline does that.
        for due in (None, world.now + 0.1):
            tasks.append(asyncio.create_task(batcher.submit([job(3), job(4)], due=due, is_begun=True)))
        await until(lambda: batcher.num_waiting == 6)
        await refusal(batcher, [job(5)], due=world.now + 100)
        for task in tasks[-1:]:
            task.cancel()
        world.gate.set()
        return numbers(await tasks[-2])

    assert asyncio.run(ask()) == [3, 4]


def test_what_comes_at_once_is_one_batch_of_an_idle_engine_whatever_may_wait(world, make):
    batcher = make(SHARED, max_batch_ms=math.inf, max_queue=4)

    async def ask():
        world.gate.clear()
        tasks = ask_at_once(batcher, *([job(number)] for number in range(16)))
        await started(world)
        # Nobody waits, so as many may as ever.
        tasks += ask_at_once(batcher, *([job(number)] for number in range(16, 20)))
        await until(lambda: batcher.num_waiting == 4)
        refused = await refusal(batcher, [job(20)])
        assert "4 sequences are waiting and at most 4 may; 1 more were sent" in refused.detail
        world.gate.set()
        return await settle(tasks)

    assert asyncio.run(ask()) == [[number] for number in range(20)]
    assert world.batches == [list(range(16)), list(range(16, 20))]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_beside_what_idle_engines_start_only_so_much_may_wait(world, make, num_workers):
    # One length to a batch, and a batch to an engine.
    batcher = make(SHARED, max_batch_ms=math.inf, max_queue=2, num_workers=num_workers)

    async def ask():
        world.gate.clear()
        lengths = [n for n in range(1, 6) for _ in range(3)]
        tasks = ask_at_once(batcher, *([job(n, n)] for n in lengths))
        for _ in range(num_workers):
            await started(world)
        assert batcher.num_waiting == 2
        world.gate.set()
        return await settle(tasks)

    results = asyncio.run(ask())
    num_let_in = 3 * num_workers + 2
    assert results[:num_let_in] == [[n] for n in range(1, 6) for _ in range(3)][:num_let_in]
    for refused in results[num_let_in:]:
        assert "2 sequences are waiting and at most 2 may; 1 more were sent" in refused.detail


def test_who_comes_while_a_batch_is_chosen_waits_beside_nobody(world, make):
    choosing, go_on = threading.Semaphore(0), threading.Event()

    class Slow(Cost):
        def seconds(self, shape):
            # At the door it is asked too, by the event loop.
            if threading.current_thread() is not threading.main_thread():
                choosing.release()
                go_on.wait()
            return super().seconds(shape)

    batcher = make(Slow(**vars(SHARED)), max_batch_ms=math.inf, max_queue=2)

    async def ask():
        tasks = ask_at_once(batcher, *([job(number)] for number in range(5)))
        assert await asyncio.to_thread(choosing.acquire, timeout=20)
        # Of those five nobody waits any more, and nobody joins them.
        tasks += ask_at_once(batcher, *([job(number)] for number in range(5, 8)))
        await asyncio.sleep(0)
        go_on.set()
        return await settle(tasks)

    *answered, refused = asyncio.run(ask())
    assert answered == [[number] for number in range(7)]
    assert "2 sequences are waiting and at most 2 may" in refused.detail
    assert world.batches[0] == [0, 1, 2, 3, 4]


def test_a_request_of_several_starts_in_part_and_waits_in_part(world, make):
    batcher = make(SHARED, max_batch_ms=math.inf, max_queue=4)

    async def ask():
        world.gate.clear()
        first = ask_at_once(batcher, [job(1)], [job(2), job(3, 2), job(4, 3)])
        # Two of four wait; of the next, two more would, and then one too many.
        second = ask_at_once(batcher, [job(5), job(6, 2), job(7, 2)], [job(8), job(9, 2)], [job(10)])
        await started(world)
        assert batcher.num_waiting == 4
        world.gate.set()
        return await settle([*first, *second])

    *answered, refused, last = asyncio.run(ask())
    assert (answered, last) == ([[1], [2, 3, 4], [5, 6, 7]], [10])
    assert "4 sequences are waiting and at most 4 may; 2 more were sent" in refused.detail
    # What was refused has left no trace in the batch.
    assert world.batches[0] == [1, 2, 5, 10]


def test_who_is_in_the_next_batch_waits_for_nobody_before_it(world, make):
    batcher = make(SHARED, max_batch_ms=2000)

    async def ask():
        # Of a second each, two to a batch: both are done after 2, and the third after 3 by what is known of them.
        return await settle(ask_at_once(batcher, [job(1)], [job(2)], [job(3)], due=world.now + 2.5))

    first, second, refused = asyncio.run(ask())
    assert (first, second) == ([1], [2])
    assert "the timeout leaves 2500" in refused.detail


def test_who_asks_again_at_once_finds_the_engine_idle(make, monkeypatch):
    batcher, seen = make(), []
    deliver = Ticket.deliver

    def look_first(*arguments):
        seen.append(dict(batcher._admission._ends))
        deliver(*arguments)

    monkeypatch.setattr(Ticket, "deliver", look_first)
    asyncio.run(batcher.submit([job(1)]))
    assert seen == [{}]


def test_an_engine_is_idle_again_whatever_became_of_its_batch(world, make):
    batcher = make(SHARED, max_batch_ms=math.inf, max_queue=2)

    async def ask():
        for culprits in ([job(POISON)], [job(POISON), job(POISON)]):
            await settle(ask_at_once(batcher, *([one] for one in culprits)))
        await until(lambda: not batcher._admission._ends)
        return await settle(ask_at_once(batcher, *([job(number)] for number in range(8))))

    assert asyncio.run(ask()) == [[number] for number in range(8)]


@pytest.mark.parametrize("num_workers", [2, 3])
def test_as_many_batches_run_at_once_as_there_are_engines(world, make, num_workers):
    batcher = make(SHARED, num_workers=num_workers)

    async def ask():
        world.gate.clear()
        tasks = [asyncio.create_task(batcher.submit([job(n, n)])) for n in range(1, num_workers + 2)]
        for _ in range(num_workers):
            await asyncio.to_thread(world.entered.acquire)
        await until(lambda: batcher.num_waiting == 1)
        # All of them are busy.
        assert not world.entered.acquire(timeout=0.05)
        world.gate.set()
        return [numbers(answers) for answers in await asyncio.gather(*tasks)]

    assert asyncio.run(ask()) == [[number] for number in range(1, num_workers + 2)]


def test_one_request_is_shared_by_idle_engines(world, make):
    batcher = make(SHARED, max_batch_ms=math.inf, num_workers=3)

    async def ask():
        world.gate.clear()
        task = asyncio.create_task(batcher.submit([job(n, n) for n in (1, 2, 3)]))
        for _ in range(3):
            await asyncio.to_thread(world.entered.acquire)
        world.gate.set()
        return numbers(await task)

    assert asyncio.run(ask()) == [1, 2, 3]


lengths = st.lists(st.integers(1, 3), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    clients=st.lists(st.lists(lengths, min_size=1, max_size=4), min_size=1, max_size=5),
    num_workers=st.integers(1, 4),
    poisoned=st.sets(st.integers(0, 60), max_size=6),
    cost=st.sampled_from([SHARED, ALONE]),
)
def test_every_answer_goes_to_its_owner(clients, num_workers, poisoned, cost):
    """Many threads with their own loops, many engines, and failures: everybody gets their own or their own error."""
    counter, ran, lock = iter(range(1000)), [], threading.Lock()

    def run(jobs):
        tokens = [int(one.sequence[0]) for one in jobs]
        if poisoned.intersection(tokens):
            raise PanicException("poisoned")
        with lock:
            ran.extend(tokens)
        return [LogitsAnswer(logits=np.float32(one.sequence[:1]), captures={}) for one in jobs]

    batcher = Batcher(run, cost, max_batch_bytes=1e9, max_queue=1000, num_workers=num_workers)
    asked = [[[(next(counter), length) for length in one] for one in client] for client in clients]
    found = {}

    def ask(place):
        async def talk():
            submitted = (batcher.submit([job(*each) for each in one]) for one in asked[place])
            return await asyncio.gather(*submitted, return_exceptions=True)

        found[place] = asyncio.run(talk())

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    for place, requests in enumerate(asked):
        for sent, answers in zip(requests, found[place], strict=True):
            tokens = [token for token, _ in sent]
            if poisoned.intersection(tokens):
                assert isinstance(answers, InternalError)
            else:
                assert numbers(answers) == tokens
                # Nobody's is computed twice in vain.
                assert all(ran.count(token) == 1 for token in tokens)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_device_that_is_lost_is_told_once_and_nobody_waits(world, make, num_workers, caplog):
    told, asked = [], []

    def is_sound():
        asked.append(True)
        # As long as a replay takes: the others fail meanwhile.
        return threading.Event().wait(0.05)

    batcher = make(
        SHARED, max_batch_ms=math.inf, num_workers=num_workers, is_sound=is_sound, on_lost=lambda: told.append(True)
    )

    async def ask():
        world.gate.clear()
        tasks = [asyncio.create_task(batcher.submit([job(POISON, n)])) for n in range(1, num_workers + 1)]
        for _ in range(num_workers):
            await asyncio.to_thread(world.entered.acquire)
        tasks += [asyncio.create_task(batcher.submit([job(n, 9)])) for n in range(5)]
        await until(lambda: batcher.num_waiting == 5)
        world.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        assert not batcher.is_open
        with pytest.raises(Unavailable):
            await batcher.submit([job(1)])

    asyncio.run(ask())
    assert told == [True]
    assert len(asked) == 1
    assert caplog.text.count("does not answer golden rightly") == 1


def test_a_sound_device_goes_on(world, make):
    asked, told = [], []
    batcher = make(
        SHARED, max_batch_ms=math.inf, is_sound=lambda: asked.append(True) or True, on_lost=lambda: told.append(True)
    )
    world.error = PanicException

    async def ask():
        tasks = await fill(world, batcher)
        tasks += [asyncio.create_task(batcher.submit([job(number)])) for number in (1, POISON, 2)]
        await until(lambda: batcher.num_waiting == 3)
        world.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    _, first, culprit, last = asyncio.run(ask())
    assert (numbers(first), numbers(last)) == ([1], [2])
    assert isinstance(culprit, InternalError)
    # Only of the culprit: what failed in company may have been anybody's fault.
    assert (asked, told, batcher.is_open) == ([True], [], True)


def test_stopping_lets_go_without_waiting(world, make):
    batcher = make(num_workers=2)

    async def ask():
        tasks = await fill(world, batcher, 3, workers=2)
        batcher.stop()
        assert not batcher.is_open
        with pytest.raises(Unavailable):
            await batcher.submit([job(1)])
        await finish(world, tasks)

    asyncio.run(ask())
    assert len(world.batches) == 5


def test_where_the_time_went(world, make):
    batcher, stages = make(), Stages()
    world.took = 0.25

    async def ask():
        tasks = await fill(world, batcher)
        asked = asyncio.create_task(batcher.submit([job(1), job(2)], stages=stages))
        await until(lambda: batcher.num_waiting == 2)
        await finish(world, [*tasks, asked])

    asyncio.run(ask())
    # Behind the first, and then one after the other.
    assert stages.describe() == "queue;dur=250.000, compute;dur=500.000"
