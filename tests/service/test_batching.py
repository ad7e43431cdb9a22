"""The queue and its worker. The run function is the test's; it runs when the test says so, and nothing sleeps."""

import asyncio
import contextlib
import logging
import threading
import weakref

import numpy as np
import pytest

from attnserve.service import queue
from attnserve.service.batching import Batcher
from attnserve.service.cost import Cost, Shape
from attnserve.service.job import Job, LogitsAnswer
from attnserve.service.problems import InternalError, Overloaded, TooLarge, Unavailable
from attnserve.service.stages import Stages

# Sequences of one length always share a batch, others never.
COST = Cost(seconds_per_run=0, seconds_per_row=0, seconds_per_cell=1, bytes_per_row=1, bytes_per_cell=0)
POISON = 666


class Broken(BaseException):
    """As errors of Rust libraries are: not an `Exception`."""


def job(number: int, length: int = 1) -> Job:
    return Job(sequence=np.full(length, number), positions=np.array([0]))


class Model:
    """Answers each job with its first token. `gate` holds it up until the test lets it run."""

    def __init__(self, *, is_open: bool = True, error: type[BaseException] = ValueError):
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.error = error
        if is_open:
            self.gate.set()

    def run(self, jobs):
        self.batches.append([int(one.sequence[0]) for one in jobs])
        self.entered.release()
        self.gate.wait()
        if POISON in self.batches[-1]:
            raise self.error("poisoned")
        return [LogitsAnswer(logits=np.float32(one.sequence[:1]), captures={}) for one in jobs]


@pytest.fixture
def make():
    """A model behind a queue; ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(model=None, *, cost=COST, **options):
            model = model or Model()
            batcher = Batcher(model.run, cost, **{"max_batch_bytes": 100, "max_queue": 100, **options})
            stack.callback(batcher.close)
            stack.callback(model.gate.set)
            return model, batcher

        yield start


def numbers(answers) -> list[int]:
    return [int(answer.logits[0]) for answer in answers]


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


async def hold(model, batcher, number=0):
    """Occupy the worker with one job; returns its task."""
    task = asyncio.create_task(batcher.submit([job(number)]))
    await asyncio.to_thread(model.entered.acquire)
    return task


def test_answers_come_in_the_order_of_the_question_across_batches(make):
    model, batcher = make()
    lengths = [3, 1, 2, 1, 3, 2, 1]
    answers = asyncio.run(batcher.submit([job(number, length) for number, length in enumerate(lengths)]))
    assert numbers(answers) == list(range(7))
    assert sorted(map(sorted, model.batches)) == [[0, 4], [1, 3, 6], [2, 5]]


def test_what_gathers_while_a_batch_runs_is_the_next_batch(make):
    model, batcher = make(Model(is_open=False))

    async def ask():
        first = await hold(model, batcher)
        others = [asyncio.create_task(batcher.submit([job(number)])) for number in (1, 2, 3)]
        await until(lambda: batcher.num_waiting == 3)
        model.gate.set()
        return [numbers(answers)[0] for answers in await asyncio.gather(first, *others)]

    assert asyncio.run(ask()) == [0, 1, 2, 3]
    assert model.batches == [[0], [1, 2, 3]]


def test_a_request_knows_how_many_sequences_ran_with_it(make):
    model, batcher = make(Model(is_open=False))
    noted = [Stages(), Stages()]

    async def ask():
        first = await hold(model, batcher)
        others = [asyncio.create_task(batcher.submit([job(number)], stages=noted[number])) for number in (0, 1)]
        await until(lambda: batcher.num_waiting == 2)
        model.gate.set()
        await asyncio.gather(first, *others)

    asyncio.run(ask())
    for stages in noted:
        assert [(stage.name, stage.batch_sequences) for stage in stages.all] == [("queue", 0), ("compute", 2)]


def test_the_wait_for_company_ends_when_closed(make):
    # Ten seconds that the test does not have: only `close` can end them.
    model, batcher = make(max_wait_ms=10_000)

    async def ask():
        asked = [asyncio.create_task(batcher.submit([job(number)])) for number in (1, 2)]
        await until(lambda: batcher.num_waiting == 2)
        await asyncio.to_thread(batcher.close)
        return [numbers(answers) for answers in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [[1], [2]]
    assert model.batches == [[1, 2]]


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt, SystemExit, Broken])
def test_only_the_culprit_fails(make, caplog, error):
    model, batcher = make(Model(is_open=False, error=error))

    async def ask():
        first = await hold(model, batcher)
        asked = [[1], [2, POISON, 3], [4, 5]]
        tasks = [asyncio.create_task(batcher.submit([job(number) for number in one])) for one in asked]
        await until(lambda: batcher.num_waiting == 6)
        model.gate.set()
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    first, before, culprit, after = asyncio.run(ask())
    assert (numbers(first), numbers(before), numbers(after)) == ([0], [1], [4, 5])
    assert isinstance(culprit, InternalError)
    # One by one, and no more of the request that has failed already.
    assert model.batches == [[0], [1, 2, 4, POISON, 5, 3], [1], [2], [4], [POISON], [5]]
    assert batcher.is_open
    assert "poisoned" in caplog.text
    assert str(POISON) not in caplog.text


def test_a_request_of_many_sequences_does_not_hold_up_one_of_a_few(make):
    class Joined(Model):
        def run(self, jobs):
            if int(jobs[0].sequence[0]) == 3:
                # Others come while the long request is half done.
                arriving.extend(
                    asyncio.run_coroutine_threadsafe(batcher.submit([job(number) for number in few]), loop)
                    for few in ([10], [20, 21])
                )
                while batcher.num_waiting < 6:
                    pass
            return super().run(jobs)

    async def ask():
        nonlocal loop
        loop = asyncio.get_running_loop()
        await batcher.submit([job(number) for number in range(1, 7)])
        for one in arriving:
            await asyncio.wrap_future(one)

    loop, arriving = None, []
    # Room for one sequence of one step in a batch.
    model, batcher = make(Joined(), max_batch_bytes=COST.bytes(Shape().add(1)))
    asyncio.run(ask())
    order = [batch[0] for batch in model.batches]
    assert order == [1, 2, 3, 10, 20, 4, 21, 5, 6]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_run_that_miscounts_fails_like_any_other(make, caplog, change):
    class Miscounting(Model):
        def run(self, jobs):
            answers = super().run(jobs)
            # Alone it counts right.
            return (answers * 2)[: len(jobs) + change] if len(jobs) > 1 else answers

    model, batcher = make(Miscounting())
    assert numbers(asyncio.run(batcher.submit([job(1), job(2)]))) == [1, 2]
    assert model.batches == [[1, 2], [1], [2]]
    assert "a batch of 2 failed and is retried one by one" in caplog.text


def test_the_worker_goes_on_after_any_failure(make):
    _, batcher = make(Model(error=Broken))

    async def ask():
        for _ in range(3):
            with pytest.raises(InternalError):
                await batcher.submit([job(POISON)])
        return await batcher.submit([job(1)])

    assert numbers(asyncio.run(ask())) == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_leaves_nobody_waiting(make):
    class Treacherous(Cost):
        """Fails where no error should exist: between the batches."""

        def seconds(self, shape):
            if shape.num_rows > 1:
                raise Broken("a bug in the queue itself")
            return super().seconds(shape)

    treacherous = Treacherous(**vars(COST))
    model, batcher = make(Model(is_open=False), cost=treacherous)

    async def ask():
        first = await hold(model, batcher)
        # Of each, every sequence is told that the worker ended, and only the first may end the request.
        others = [asyncio.create_task(batcher.submit([job(1), job(2)])) for _ in range(2)]
        await until(lambda: batcher.num_waiting == 4)
        model.gate.set()
        assert numbers(await first) == [0]
        for failed in await asyncio.gather(*others, return_exceptions=True):
            assert isinstance(failed, Unavailable)
        assert not batcher.is_open
        with pytest.raises(Unavailable):
            await batcher.submit([job(2)])

    asyncio.run(ask())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_in_a_batch_leaves_nobody_waiting(make, monkeypatch):
    _, batcher = make()
    # Logging is the last thing that can fail, and then nothing is left to catch it.
    monkeypatch.setattr(
        logging.getLogger("attnserve.service.batching"), "error", lambda *_, **__: (_ for _ in ()).throw(Broken("log"))
    )
    with pytest.raises(Unavailable):
        asyncio.run(batcher.submit([job(POISON)]))
    assert not batcher.is_open


def test_close_finishes_what_is_queued(make):
    model, batcher = make(Model(is_open=False))

    async def ask():
        first = await hold(model, batcher)
        second = asyncio.create_task(batcher.submit([job(1), job(2, length=2)]))
        await until(lambda: batcher.num_waiting == 2)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await until(lambda: not batcher.is_open)
        with pytest.raises(Unavailable):
            await batcher.submit([job(3)])
        model.gate.set()
        await closing
        return numbers(await first), numbers(await second)

    assert asyncio.run(ask()) == ([0], [1, 2])
    batcher.close()  # twice is no more than once


def test_work_of_a_client_who_left_is_not_run(make):
    model, batcher = make(Model(is_open=False))

    async def ask():
        first = await hold(model, batcher)
        leaving = asyncio.create_task(batcher.submit([job(1), job(2)]))
        staying = asyncio.create_task(batcher.submit([job(3)]))
        await until(lambda: batcher.num_waiting == 3)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        model.gate.set()
        return numbers(await first), numbers(await staying), leaving.cancelled()

    assert asyncio.run(ask()) == ([0], [3], True)
    assert model.batches == [[0], [3]]


def test_the_worker_outlives_a_queue_that_everyone_has_left(make):
    model, batcher = make(Model(is_open=False))

    async def ask():
        first = await hold(model, batcher)
        leaving = asyncio.create_task(batcher.submit([job(1)]))
        await until(lambda: batcher.num_waiting == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        model.gate.set()
        await first
        await until(lambda: batcher.num_waiting == 0)
        return numbers(await batcher.submit([job(2)]))

    assert asyncio.run(ask()) == [2]
    assert model.batches == [[0], [2]]


def test_a_client_who_leaves_while_its_batch_runs_disturbs_nobody(make):
    model, batcher = make(Model(is_open=False))

    async def ask():
        leaving = await hold(model, batcher)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        staying = asyncio.create_task(batcher.submit([job(1)]))
        await until(lambda: batcher.num_waiting == 1)
        model.gate.set()
        return numbers(await staying)

    assert asyncio.run(ask()) == [1]


@pytest.mark.parametrize("finish", ["deliver", "fail"])
def test_answer_and_departure_may_meet(make, monkeypatch, finish):
    # Between looking whether the client is there and telling it, it leaves; a future allows no second ending.
    _, batcher = make()
    told = []

    def leave_first(future, *outcome):
        future.cancel()
        told.append(future)
        return tell(future, *outcome)

    tell = queue._tell
    monkeypatch.setattr(queue, "_tell", leave_first)

    async def ask():
        with pytest.raises(asyncio.CancelledError):
            await batcher.submit([job(1 if finish == "deliver" else POISON)])
        monkeypatch.undo()
        return numbers(await batcher.submit([job(2)]))

    assert asyncio.run(ask()) == [2]
    assert len(told) == 1


def test_a_full_queue_takes_all_of_a_request_or_nothing(make):
    model, batcher = make(Model(is_open=False), max_queue=3)

    async def ask():
        tasks = [await hold(model, batcher), asyncio.create_task(batcher.submit([job(1), job(2)]))]
        await until(lambda: batcher.num_waiting == 2)
        with pytest.raises(Overloaded, match="2 sequences are waiting and at most 3 may; 2 more were sent"):
            await batcher.submit([job(3), job(4)])
        assert batcher.num_waiting == 2
        tasks.append(asyncio.create_task(batcher.submit([job(5)])))
        await until(lambda: batcher.num_waiting == 3)
        with pytest.raises(TooLarge, match="sequences: expected at most 3 sequences in one request, got 4"):
            await batcher.submit([job(6)] * 4)
        model.gate.set()
        return [numbers(answers) for answers in await asyncio.gather(*tasks)]

    assert asyncio.run(ask()) == [[0], [1, 2], [5]]


def test_a_sequence_that_never_fits_is_refused_at_the_door(make):
    model, batcher = make()
    with pytest.raises(TooLarge) as caught:
        asyncio.run(batcher.submit([job(0, 100), job(1, 101), job(2, 101)]))
    message = "expected at most 100 steps, which is what fits in 100 bytes of memory here, got 101"
    assert [(fault.field, fault.message) for fault in caught.value.faults] == [("sequences[1]", message)]
    with pytest.raises(TooLarge, match=r"tokens\[0\]: expected at most 100 steps"):
        asyncio.run(batcher.submit([job(0, 101)], field="tokens"))
    # One that is going to grow is measured by what becomes of it.
    with pytest.raises(TooLarge, match=r"sequences\[1\]: expected at most 100 steps.*, got 60 and 41 more"):
        asyncio.run(batcher.submit([job(0, 50), job(1, 60)], num_more=41))
    assert model.batches == []
    assert numbers(asyncio.run(batcher.submit([job(1, 60)], num_more=40))) == [1]
    assert numbers(asyncio.run(batcher.submit([job(1, 100)]))) == [1]


def test_memory_bounds_a_batch(make):
    model, batcher = make(Model(is_open=False))

    async def ask():
        first = await hold(model, batcher)
        rest = asyncio.create_task(batcher.submit([job(number, 30) for number in range(1, 6)]))
        await until(lambda: batcher.num_waiting == 5)
        model.gate.set()
        await asyncio.gather(first, rest)

    asyncio.run(ask())
    assert model.batches == [[0], [1, 2, 3], [4, 5]]


def test_who_comes_while_a_batch_is_chosen_is_not_forgotten(make):
    choosing, go_on = threading.Semaphore(0), threading.Event()

    class Slow(Cost):
        def seconds(self, shape):
            # At the door it is asked too, by the event loop.
            if threading.current_thread() is not threading.main_thread():
                choosing.release()
                go_on.wait()
            return super().seconds(shape)

    model, batcher = make(cost=Slow(**vars(COST)))

    async def ask():
        first = asyncio.create_task(batcher.submit([job(1), job(2, length=2)]))
        await asyncio.to_thread(choosing.acquire)
        # The event loop is not held up by the choice, and the queue is as long as it looks.
        second = asyncio.create_task(batcher.submit([job(3)]))
        await until(lambda: batcher.num_waiting == 3)
        go_on.set()
        return numbers(await first), numbers(await second)

    assert asyncio.run(ask()) == ([1, 2], [3])
    assert model.batches[0] == [1]


def test_time_bounds_a_batch(make):
    # Of one step each: a cell and a second. Two of them take two seconds, as long as each alone.
    model, batcher = make(Model(is_open=False), max_batch_ms=2000)

    async def ask():
        first = await hold(model, batcher)
        rest = asyncio.create_task(batcher.submit([job(number) for number in range(1, 6)]))
        await until(lambda: batcher.num_waiting == 5)
        model.gate.set()
        await asyncio.gather(first, rest)

    asyncio.run(ask())
    assert model.batches == [[0], [1, 2], [3, 4], [5]]


def test_many_threads_of_clients(make):
    _, batcher = make()
    results = {}

    def client(number):
        async def ask():
            return [numbers(await batcher.submit([job(number * 100 + k) for k in range(3)])) for _ in range(5)]

        results[number] = asyncio.run(ask())

    threads = [threading.Thread(target=client, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [[number * 100 + k for k in range(3)]] * 5 for number in range(1, 9)}


def test_who_cannot_be_answered_in_time_does_not_run_while_others_can(make):
    now = [0.0]
    # One second per step, and nothing saved by sharing.
    cost = Cost(seconds_per_run=-0.1, seconds_per_row=1, seconds_per_cell=0, bytes_per_row=1, bytes_per_cell=0)
    model, batcher = make(Model(is_open=False), cost=cost, clock=lambda: now[0])

    async def ask():
        first = await hold(model, batcher)
        late = asyncio.create_task(batcher.submit([job(1, 2)], due=6.0))
        patient = asyncio.create_task(batcher.submit([job(2, 2)]))
        await until(lambda: batcher.num_waiting == 2)
        now[0] = 5.0
        model.gate.set()
        await asyncio.gather(first, patient)
        assert not late.done()
        late.cancel()

    asyncio.run(ask())
    assert model.batches == [[0], [2]]


def test_alone_it_runs_however_late(make):
    cost = Cost(seconds_per_run=9, seconds_per_row=1, seconds_per_cell=0, bytes_per_row=1, bytes_per_cell=0)
    model, batcher = make(cost=cost, clock=lambda: 0.0)
    # What is expected may be wrong, and nothing else would ever show it.
    assert numbers(asyncio.run(batcher.submit([job(1)], due=0.001))) == [1]
    assert model.batches == [[1]]


def test_admission_knows_what_is_running_and_who_shares_the_last_batch(make):
    cost = Cost(seconds_per_run=-0.1, seconds_per_row=1, seconds_per_cell=0, bytes_per_row=1, bytes_per_cell=0)
    model, batcher = make(Model(is_open=False), cost=cost, clock=lambda: 0.0)

    async def ask():
        first = await hold(model, batcher)
        waiting = asyncio.create_task(batcher.submit([job(1, 3)]))
        await until(lambda: batcher.num_waiting == 1)
        # 0.9 s are running, 2.9 s wait, and the last batch may take as long as all that waits and itself: 4.8 s.
        with pytest.raises(Overloaded) as refused:
            await batcher.submit([job(2, 2)], due=8.5)
        assert refused.value.headers == {"Retry-After": "1"}
        with pytest.raises(Overloaded) as refused:
            await batcher.submit([job(2, 2)], due=3.0)
        assert refused.value.headers == {"Retry-After": "6"}
        let_in = asyncio.create_task(batcher.submit([job(2, 2)], due=9.7))
        await until(lambda: batcher.num_waiting == 2)
        model.gate.set()
        await asyncio.gather(first, waiting, let_in)

    asyncio.run(ask())


@pytest.mark.parametrize("error", [None, ValueError("no memory")])
def test_when_work_is_over_it_is_said_once_and_then_work_goes_on(make, error, caplog):
    said = threading.Semaphore(0)

    def rest():
        said.release()
        if error is not None:
            raise error

    _, batcher = make(on_idle=rest, idle_seconds=1e-3)
    assert not said.acquire(blocking=False)
    for number in (1, 2, 3):
        assert numbers(asyncio.run(batcher.submit([job(number)]))) == [number]
        assert said.acquire(timeout=60)
    # Nothing has come since.
    batcher.close()
    assert not said.acquire(blocking=False)
    assert caplog.text.count("no memory") == (0 if error is None else 3)


def test_it_is_not_said_while_work_waits(make):
    said = []
    model, batcher = make(Model(is_open=False), on_idle=lambda: said.append(len(model.batches)), idle_seconds=1e-3)

    async def ask():
        tasks = [await hold(model, batcher), asyncio.create_task(batcher.submit([job(1)]))]
        await until(lambda: batcher.num_waiting == 1)
        model.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(ask())
    batcher.close()
    assert 1 not in said


def test_who_is_idle_keeps_no_answers(make):
    answers, kept = [], []
    is_over, said = threading.Event(), threading.Event()

    def rest():
        is_over.wait()
        kept.extend(answer() is not None for answer in answers)
        said.set()

    class Watched(Model):
        def run(self, jobs):
            given = super().run(jobs)
            answers.extend(map(weakref.ref, given))
            return given

    _, batcher = make(Watched(), on_idle=rest, idle_seconds=1e-3)
    assert numbers(asyncio.run(batcher.submit([job(1), job(2)]))) == [1, 2]
    is_over.set()
    assert said.wait(timeout=60)
    assert kept == [False, False]
