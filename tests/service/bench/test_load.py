"""Loads, against a server of a few lines and by a clock of the test's own: every figure is exact."""

import asyncio

import pytest

from attnserve.service.bench.load import PAUSE_S, Load, Reply, Unanswered
from attnserve.service.bench.report import Window, summarise

BODIES = [b"a", b"b", b"c"]
EVENLY = [number / 100 for number in range(400)]
WHOLE = Window(start_s=0, end_s=4)


def answer(status=200, **server_ms):
    return Reply(status=status, server_ms=server_ms)


def offer(runner, ask, arrivals_s=EVENLY, *, timeout_s=10.0, window=WHOLE, deadline_ms=None):
    load = Load(ask, BODIES, timeout_s=timeout_s)
    runner.run(load.offer(arrivals_s))
    return load, summarise(load.outcomes, window, deadline_ms=deadline_ms, is_open=True, client_cpu=0.1)


def now_s():
    return asyncio.get_running_loop().time() - 1000


def test_requests_leave_when_they_are_due_with_their_bodies_in_turn(runner):
    seen = []

    async def ask(body):
        seen.append((round(now_s(), 6), body))
        await asyncio.sleep(1)
        return answer()

    load, summary = offer(runner, ask, [0, 0.25, 0.25, 3.5])
    assert seen == [(0, b"a"), (0.25, b"b"), (0.25, b"c"), (3.5, b"a")]
    assert load.elapsed_s == pytest.approx(4.5)
    assert summary.latency_ms == pytest.approx(dict.fromkeys(summary.latency_ms, 1000))
    assert summary.lag_ms == pytest.approx(dict.fromkeys(summary.lag_ms, 0), abs=1e-6)
    assert summary.faults == ()


def test_a_server_that_stalls_is_seen_by_all_who_would_have_asked_meanwhile(runner):
    async def ask(body):
        # Ten milliseconds; nothing at all from second 2 to 3.
        await asyncio.sleep((3 - now_s() if 2 <= now_s() + 1e-9 < 3 else 0) + 0.01)
        return answer()

    _, summary = offer(runner, ask)
    assert summary.num_offered == summary.num_answered == 400
    # 300 of 10 ms, and 100 that waited: 20, 30, ... 1010.
    expected = {"p50": 10, "p90": 610, "p95": 810, "p99": 970, "p99.9": 1010, "max": 1010}
    assert summary.latency_ms == pytest.approx(expected)
    assert summary.lag_ms == pytest.approx(dict.fromkeys(expected, 0), abs=1e-6)


def test_a_closed_loop_hardly_notices_the_same_stall(runner):
    async def ask(body):
        await asyncio.sleep((3 - now_s() if 2 <= now_s() + 1e-9 < 3 else 0) + 0.01)
        return answer()

    load = Load(ask, BODIES, timeout_s=10)
    runner.run(load.saturate(1, 4))
    summary = summarise(load.outcomes, WHOLE, deadline_ms=None, is_open=False, client_cpu=0.1)
    assert summary.latency_ms["p99"] == pytest.approx(10)
    assert summary.latency_ms["max"] == pytest.approx(1010)
    assert summary.lag_ms is None


def test_throughput_is_what_the_server_manages_and_not_what_it_is_given(runner):
    turn = asyncio.Lock()

    async def ask(body):
        async with turn:
            await asyncio.sleep(0.02)
        return answer()

    load, summary = offer(runner, ask, deadline_ms=100)
    assert summary.offered_per_s == 100
    assert summary.num_answered == 400
    assert summary.answered_per_s == pytest.approx(50, abs=0.5)
    # The n-th is answered at 20 n and was due at 10 (n - 1): 100 ms are over after nine.
    assert summary.num_within_deadline == 9
    assert summary.goodput_per_s == 2.25
    assert load.elapsed_s == pytest.approx(8)


def test_what_was_due_in_the_warm_up_is_not_counted(runner):
    async def ask(body):
        await asyncio.sleep(5 if now_s() < 1 - 1e-9 else 0.01)
        return answer(200 if now_s() < 5 else 503)

    _, summary = offer(runner, ask, window=Window(start_s=1, end_s=4))
    assert (summary.window_s, summary.num_offered, summary.num_answered) == (3, 300, 300)
    assert summary.statuses == {"200": 300}
    assert summary.latency_ms["max"] == pytest.approx(10)


def test_answers_are_counted_by_status_and_the_rest_by_error(runner):
    ends = iter([200, 200, 429, "connect", 504, "disconnect", 429, "connect"])

    async def ask(body):
        end = next(ends)
        if isinstance(end, str):
            raise Unanswered(end)
        return answer(end, queue=1.5) if end == 200 else answer(end)

    _, summary = offer(runner, ask, EVENLY[:8])
    assert summary.statuses == {"200": 2, "429": 2, "504": 1}
    assert summary.errors == {"connect": 2, "disconnect": 1}
    assert summary.server_ms == {"queue": dict.fromkeys(summary.latency_ms, 1.5)}
    assert summary.faults == ()


def test_a_server_that_never_answers_ends_the_run_all_the_same(runner):
    async def ask(body):
        await asyncio.Event().wait()

    load, summary = offer(runner, ask, timeout_s=3)
    assert summary.errors == {"timeout": 400}
    assert (summary.statuses, summary.latency_ms, summary.answered_per_s) == ({}, None, 0)
    assert load.elapsed_s == pytest.approx(3.99 + 3)


def test_a_timeout_counts_from_when_the_request_was_due(runner):
    async def ask(body):
        # A client that computes for half a second before it can send.
        asyncio.get_running_loop().now_s += 0.5
        await asyncio.sleep(0.7)
        return answer()

    load, summary = offer(runner, ask, [0.0], timeout_s=1)
    assert summary.errors == {"timeout": 1}
    assert load.elapsed_s == pytest.approx(1)


def test_a_client_that_cannot_keep_up_says_so(runner):
    async def ask(body):
        # Twenty milliseconds of work for every request, of which there is one every ten.
        asyncio.get_running_loop().now_s += 0.02
        return answer()

    _, summary = offer(runner, ask, timeout_s=1.0)
    assert summary.num_offered == 400
    # A second late after a hundred, and with them everything behind it.
    assert summary.errors["unsent"] > 90
    assert summary.num_answered + summary.errors["unsent"] + summary.errors.get("timeout", 0) == 400
    assert summary.lag_ms["p50"] > 900
    assert summary.latency_ms["p50"] >= summary.lag_ms["p50"] / 2
    late, unsent = summary.faults
    assert late.startswith("p50 of its lag is ")
    assert unsent == f"{summary.errors['unsent']} requests were given up before they were sent"


def test_interrupted_it_keeps_what_it_has_and_counts_who_still_waits(runner):
    async def ask(body):
        if now_s() > 1 - 1e-9:
            await asyncio.Event().wait()
        return answer()

    load = Load(ask, BODIES, timeout_s=100)

    async def interrupt():
        running = asyncio.create_task(load.offer(EVENLY))
        await asyncio.sleep(2.005)
        running.cancel()
        await running

    with pytest.raises(asyncio.CancelledError):
        runner.run(interrupt())
    assert load.elapsed_s == pytest.approx(2.005)
    window = Window(start_s=0, end_s=load.elapsed_s)
    summary = summarise(load.outcomes, window, deadline_ms=None, is_open=True, client_cpu=0.1)
    assert (summary.statuses, summary.errors) == ({"200": 100}, {"interrupted": 101})


def test_a_closed_loop_keeps_every_connection_busy(runner):
    running = most = 0

    async def ask(body):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.125)
        running -= 1
        return answer()

    load = Load(ask, BODIES, timeout_s=10)
    runner.run(load.saturate(3, 2))
    assert (len(load.outcomes), most) == (3 * 16, 3)
    assert load.elapsed_s == pytest.approx(2)


def test_a_closed_loop_does_not_hammer_a_server_that_is_gone(runner):
    async def ask(body):
        raise Unanswered("connect")

    load = Load(ask, BODIES, timeout_s=10)
    runner.run(load.saturate(2, 10.5 * PAUSE_S))
    assert len(load.outcomes) == 2 * 11


def test_every_outcome_is_told(runner):
    told = []

    async def ask(body):
        return answer()

    runner.run(Load(ask, BODIES, timeout_s=1, notify=lambda: told.append(1)).offer(EVENLY[:7]))
    assert len(told) == 7


def test_a_bug_is_no_outcome(runner):
    async def ask(body):
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        runner.run(Load(ask, BODIES, timeout_s=1).offer([0.0]))
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
